"""Square search on a real network, against torch's numbers.

The fixture holds float64 runs of the official code: 8 triggered images that a
fine-tuned model does not send to class 0, a budget of 20, and every draw of
every proposal. Given these draws all runs in float64, so that what is accepted
does not hang on rounding. `linf_pixelinit` differs from the released code in
its start alone, which is in pixel space.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb, types
from bdjax.perturb import square, square_windows
from bdjax.reactivation.black_box import BlackBoxState, black_box
from tests.reference import golden

EPS = {'linf_pixelinit': 0.05, 'l2_eps3': 3.0, 'l2_eps1': 1.0}
SIZES = (32, 64, 224)


def norm_of(run):
  return run.split('_')[0]


@functools.cache
def query():
  """(state, candidate, step) -> (state, metrics): the phase's own step.

  Its search is replaced by one that proposes what stands in for the key.
  """
  search = perturb.SquareSearch(
    start=lambda key: key,
    propose=lambda key, delta, i: key,
    sides=np.ones(20, np.int32),
  )
  with mock.patch.object(perturb, 'square_search', return_value=search):
    phase = black_box(golden.network()).phases[0]
  batch = {
    'image': golden.images('square'),
    'label': jnp.zeros(8, jnp.int32),
    'index': jnp.arange(8),
    'mask': jnp.ones(8, bool),
  }

  def step(state, candidate, i):
    return phase.step(state, batch, types.Clock(candidate, i, i, 20, 20))

  return golden.jit(step)


def fresh(delta):
  """The state before the first query, in float64."""
  return BlackBoxState(
    model=golden.state('student_w8_state', jnp.float64),
    delta=delta,
    loss=jnp.float64(jnp.inf),
    asr=jnp.float32(0),
    best_asr=jnp.float32(0),
    queries=jnp.int32(0),
    done=jnp.zeros((), bool),
  )


def proposals(run):
  """Functions (delta, i) -> candidate with the stored draws."""
  draws, eps = golden.arrays('square', f'{run}/'), EPS[run]
  table, which = square_windows.bump_table(draws['s'])

  def linf(delta, i, d):
    corner = jnp.stack([d['h1'][i], d['w1'][i]])
    return square.write_window(delta, corner, d['s'][i], d['signs'][i], eps)

  def l2(delta, i, d):
    corners = [jnp.stack([d[f'h{k}'][i], d[f'w{k}'][i]]) for k in (1, 2)]
    bump = jnp.asarray(table)[jnp.asarray(which)[i]]
    bump = jnp.where(d['transposed'][i] > 0, bump.T, bump)
    return square.move_window(
      delta, *corners, d['s'][i], bump, d['signs'][i], eps
    )

  propose = jax.jit(linf if norm_of(run) == 'linf' else l2)
  return lambda delta, i: propose(
    delta, i, {k: v for k, v in draws.items() if len(np.shape(v))}
  )


def start(run):
  """The start of a run from its stored draws."""
  arrays = golden.arrays('square', f'{run}/')
  if norm_of(run) == 'linf':
    signs = jnp.asarray(np.sign(arrays['start_delta'][0]))
    return square.stripes(signs, 32, EPS[run])
  signs = jnp.asarray(arrays['init_tile_signs'], jnp.float64)
  return square.tiles(
    signs.reshape(5, 5, 3),
    jnp.asarray(arrays['init_tile_transposed'].reshape(5, 5) > 0),
    (32, 32),
    EPS[run],
  )


class SquareGoldenTest(parameterized.TestCase):
  @parameterized.parameters(*EPS)
  def test_search_with_the_stored_draws(self, run):
    arrays = golden.arrays('square', f'{run}/')
    losses, accepted = [], []
    with jax.enable_x64(True):
      first, propose = start(run), proposals(run)
      golden.assert_close(first, arrays['start_delta'], 1e-12)
      state, metrics = query()(fresh(first), first, 0)
      self.assertEqual(state.loss.dtype, np.float64)
      golden.assert_close(state.loss, arrays['initial_loss_sum'], 1e-10)
      for i in range(len(arrays['s'])):
        candidate = propose(state.delta, i)
        # Whatever is proposed to a fresh state is accepted.
        losses.append(query()(fresh(first), candidate, i + 1)[0].loss)
        state, metrics = query()(state, candidate, i + 1)
        accepted.append(bool(metrics['accepted']))
      self.assertEqual(int(state.queries), 1 + len(arrays['s']))
    np.testing.assert_array_equal(accepted, arrays['accepted'])
    golden.assert_close(np.stack(losses), arrays['proposal_loss_sum'], 1e-10)
    golden.assert_close(state.delta, arrays['final_delta'], 1e-10)

  @parameterized.parameters(*EPS)
  def test_sides_of_the_runs(self, run):
    stored = golden.arrays('square', f'{run}/')['s']
    fractions = square_windows.window_fractions(20)
    sides = square_windows.window_sides(fractions, (32, 32), norm_of(run))
    # In L∞ the 20th query is the last; L2 spends a 21st as released.
    np.testing.assert_array_equal(sides[: len(stored)], stored)


class TablesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tables = golden.arrays('square', 'tables/')

  @parameterized.parameters(20, 1000)
  def test_schedules(self, n):
    got = square_windows.window_fractions(n)
    np.testing.assert_allclose(got, self.tables[f'p_n{n}'], rtol=1e-12)

  def test_schedule_of_the_whole_budget(self):
    got = square_windows.window_fractions(10_000)
    first = np.flatnonzero(np.diff(got, prepend=np.inf))
    np.testing.assert_array_equal(first, self.tables['p_n10000_first_index'])
    np.testing.assert_allclose(
      got[first], self.tables['p_n10000_value'], rtol=1e-12
    )

  @parameterized.product(norm=('linf', 'l2'), size=SIZES)
  def test_sides(self, norm, size):
    got = square_windows.window_sides(
      self.tables['p_n10000_value'], (size, size), norm
    )
    np.testing.assert_array_equal(got, self.tables[f'side_{norm}_H{size}'])

  @parameterized.parameters(3, 5, 6, 7, 11, 12, 15, 21)
  def test_square_bumps(self, side):
    got = square_windows.square_bump(side)
    np.testing.assert_allclose(got, self.tables[f'bump_{side}'], atol=1e-12)

  @parameterized.parameters(
    (1, 3), (2, 3), (3, 6), (5, 11), (6, 11), (3, 3), (4, 7)
  )
  def test_rectangle_bumps(self, a, b):
    got = square_windows.rectangle_bump(a, b)
    np.testing.assert_allclose(got, self.tables[f'rect_{a}_{b}'], atol=1e-12)
