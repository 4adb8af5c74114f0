"""Trigger inversion: the steering of the cost, a planted trigger, lanes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import eval, perturb, tree
from bdjax.perturb import inversion

HP = perturb.InversionHParams()
SIZE, CLASSES = 6, 6
SHAPE = (SIZE, SIZE, 3)
steer = jax.jit(inversion.steer_cost)
step_lane = jax.jit(inversion.step_lane, static_argnums=0)


def costs(outcomes, norms=None, hp=HP):
  """The cost after each epoch, and the last state."""
  state, seen = inversion.start_cost(hp.cost), []
  for i, outcome in enumerate(outcomes):
    norm = 10.0 - 0.5 * i if norms is None else norms[i]
    state = steer(state, jnp.asarray(outcome), jnp.asarray(norm), hp)
    seen.append(float(state.cost))
  return np.array(seen), state


class SteerCostTest(parameterized.TestCase):
  def test_five_of_a_kind_change_the_cost(self):
    got, state = costs([True] * 5 + [False] * 5 + [True] * 4 + [False])
    want = [1.0] * 4 + [2.0] * 5 + [2 / 2**1.5] * 6
    np.testing.assert_allclose(got, 1e-3 * np.array(want), rtol=1e-5)
    self.assertTrue(bool(state.has_risen & state.has_fallen))

  def test_counters_start_again_after_a_change(self):
    got, _ = costs([True] * 11)
    want = [1.0] * 4 + [2.0] * 5 + [4.0] * 2
    np.testing.assert_allclose(got, 1e-3 * np.array(want), rtol=1e-5)

  def test_a_cost_of_zero_is_set_to_the_first(self):
    state = inversion.start_cost(0.0)
    for i in range(5):
      self.assertEqual(float(state.cost), 0.0)
      state = steer(state, jnp.asarray(True), jnp.asarray(9.0 - i), HP)
    self.assertAlmostEqual(float(state.cost), HP.cost)
    self.assertFalse(bool(state.has_risen))

  def test_stops_after_both_directions_without_progress(self):
    outcomes = [True] * 5 + [False] * 5 + [True] * 25
    norms = [5.0] * len(outcomes)
    # Epoch 0 sets the best; 25 more bring no smaller one.
    _, running = costs(outcomes[:25], norms)
    self.assertFalse(bool(running.is_done))
    _, stopped = costs(outcomes[:26], norms)
    self.assertTrue(bool(stopped.is_done))

  def test_progress_or_one_direction_keeps_it_going(self):
    _, state = costs([True] * 60, [5.0] * 60)  # never fell
    self.assertFalse(bool(state.is_done))
    outcomes = [True] * 5 + [False] * 5 + [True] * 50
    _, state = costs(outcomes, [5 * 0.98**i for i in range(60)])
    self.assertFalse(bool(state.is_done))

  def test_best_norm_is_of_successes(self):
    _, state = costs([True, False, True], [5.0, 1.0, 4.0])
    self.assertEqual(float(state.best_norm), 4.0)


PLANTED, WANTED = 2, (slice(4, 6), slice(4, 6))


def planted(images):
  """Class 2 has it all where the corner of 2×2 pixels is white."""
  corner = jnp.mean(images[:, WANTED[0], WANTED[1]], (1, 2, 3))
  # The other classes need half of the image, three rows each.
  rows = jnp.mean(images, (2, 3))
  halves = (rows + jnp.roll(rows, 1, 1) + jnp.roll(rows, 2, 1)) / 3
  scores = [20 * halves[:, i] for i in range(CLASSES)]
  scores[PLANTED] = 20 * corner
  return jnp.stack(scores, 1)


IMAGES = (
  np.random.default_rng(0).uniform(0, 0.6, (24, *SHAPE)).astype(np.float32)
)


def batch():
  return {'image': jnp.asarray(IMAGES), 'mask': jnp.ones(24, bool)}


@functools.partial(jax.jit, static_argnames=('num', 'chunk'))
def invert(num, chunk=None, hp=HP):
  """Lanes after `num` epochs of one step."""
  lanes = tree.broadcast(perturb.start_lane(SHAPE, hp), CLASSES)

  def step(lanes, _):
    return perturb.invert_step(planted, lanes, batch(), True, hp, chunk=chunk)

  return jax.lax.scan(step, lanes, None, length=num)


class InvertTest(parameterized.TestCase):
  def test_planted_trigger_stands_out(self):
    hp = perturb.InversionHParams(cost=0.05)
    lanes, _ = invert(300, hp=hp)
    patch = jax.vmap(perturb.found_patch)(lanes)
    norms = jnp.sum(patch.mask, (1, 2, 3))
    np.testing.assert_array_equal(
      eval.flag_small(norms), np.arange(CLASSES) == PLANTED
    )
    mask = np.asarray(patch.mask[PLANTED, ..., 0])
    inside = np.zeros_like(mask, bool)
    inside[WANTED] = True
    found = mask > 0.5 * mask.max()
    self.assertGreater((found & inside).sum() / (found | inside).sum(), 0.5)

  def test_masks_and_patterns_are_inside_the_unit_interval(self):
    lanes, _ = invert(40, hp=perturb.InversionHParams(lr=3.0))
    for leaf in jax.vmap(perturb.found_patch)(lanes):
      self.assertBetween(float(jnp.min(leaf)), 0, 1)
      self.assertBetween(float(jnp.max(leaf)), 0, 1)

  @parameterized.parameters(1, 4)
  def test_chunks_of_classes_change_nothing(self, chunk):
    whole, losses = invert(6)
    chunked, same = invert(6, chunk)
    chex.assert_trees_all_close(whole, chunked, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses, same, rtol=1e-5)

  @parameterized.parameters(1, 4, CLASSES)
  def test_stopped_classes_stay(self, chunk):
    lanes, _ = invert(2)
    stopped = jnp.arange(CLASSES) % 2 == 0
    lanes = lanes._replace(control=lanes.control._replace(is_done=stopped))
    after, losses = perturb.invert_step(
      planted, lanes, batch(), True, HP, chunk=chunk
    )
    np.testing.assert_array_equal(losses == 0, stopped)
    for old, new in zip(lanes.free, after.free, strict=True):
      same = jnp.all(old == new, (1, 2, 3))
      np.testing.assert_array_equal(same, stopped)

  def test_first_step_by_hand(self):
    lanes, losses = invert(1)
    squashed = np.tanh(1.0) / 2 + 0.5
    x = np.asarray(batch()['image'], np.float64)
    logits = np.asarray(planted((1 - squashed) * x + squashed**2), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    want = -log_p.mean(0) + 1e-3 * squashed * SIZE**2
    np.testing.assert_allclose(losses[0], want, rtol=1e-4)
    # Adam's first step is the rate, against the gradient's sign.
    moved = np.abs(np.asarray(lanes.free.mask) - 1)
    np.testing.assert_allclose(moved, 0.1, rtol=1e-3)

  def test_stopped_lanes_stay(self):
    lane = perturb.start_lane(SHAPE, HP)
    control = lane.control._replace(is_done=jnp.asarray(True))
    lane = lane._replace(control=control)
    after, _ = step_lane(planted, lane, batch(), 0, True, HP)
    chex.assert_trees_all_equal(after, lane)

  def test_masked_images_do_not_count(self):
    half = {**batch(), 'mask': jnp.arange(24) < 12}
    lane = perturb.start_lane(SHAPE, HP)
    after, _ = step_lane(planted, lane, half, 0, False, HP)
    self.assertEqual(int(after.seen), 12)
    self.assertLessEqual(int(after.hits), 12)
    self.assertEqual(int(after.steps), 1)

  def test_last_patch_where_none_ever_worked(self):
    lane = perturb.start_lane(SHAPE, HP)
    lane = lane._replace(free=jax.tree.map(lambda u: 0 * u, lane.free))
    patch = perturb.found_patch(lane)
    np.testing.assert_allclose(patch.mask, 0.5)

  def test_bad_chunk(self):
    with self.assertRaisesRegex(ValueError, '`chunk=0` must be positive'):
      invert(1, 0)
