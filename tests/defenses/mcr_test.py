"""MCR: its ends, the step of the middle by hand, what it leaves behind."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import connectivity, defenses, keys, training, tree, types
from tests.defenses import tuning

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
CLOCK = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 4, 4)


def hparams(**values):
  base = dict(epochs=2, end_epochs=2, batch_size=NUM, lr=0.1)
  return defenses.McrHParams(**base | values)


def batch():
  return {
    'image': jnp.asarray(tuning.IMAGES, jnp.float32) / 255,
    'label': jnp.zeros(NUM, jnp.int32),
  }


@functools.cache
def model():
  return NET.init(KEY)


@functools.cache
def program(num_phases, curve):
  """t -> the carry after so many phases, compiled once."""

  def carry(t):
    defense = defenses.mcr(NET, hparams(t=t, curve=curve))
    defense = defense._replace(phases=defense.phases[:num_phases])
    return tuning.run(defense, model())[0]

  return jax.jit(carry)


@functools.cache
def run(t=0.1, curve='bezier'):
  return program(3, curve)(t)


def curve_states(hp, net, start, end):
  """The second phase before and after one step."""
  phase = defenses.mcr(net, hp).phases[1]
  extra = training.Remembered(model=start, extra={})
  state = phase.init(KEY, types.Carry(model=end, extra=extra))
  return state, phase.step(state, batch(), CLOCK)[0]


class McrTest(parameterized.TestCase):
  @parameterized.parameters(*connectivity.CURVES)
  def test_t_zero_is_the_start_but_for_statistics(self, curve):
    after = run(t=0.0, curve=curve).model
    chex.assert_trees_all_equal(after.params, model().params)
    got, old = after.batch_stats['bn0'], model().batch_stats['bn0']
    mean, var = tuning.batch_statistics(model())
    np.testing.assert_allclose(got['mean'], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got['var'], var, rtol=0.02)
    self.assertFalse(np.allclose(got['mean'], old['mean'], atol=1e-3))

  @parameterized.parameters(*connectivity.CURVES)
  def test_t_one_is_the_fine_tuned_model(self, curve):
    carry = run(t=1.0, curve=curve)
    end = program(1, curve)(0.5).model
    chex.assert_trees_all_equal(carry.model.params, carry.extra['end'])
    chex.assert_trees_all_close(carry.extra['end'], end.params, rtol=1e-5)
    self.assertFalse(np.array_equal(end.params['head'], model().params['head']))

  @parameterized.parameters(*connectivity.CURVES)
  def test_step_of_the_middle_by_hand(self, curve):
    a = np.asarray([1.0, 2.0])
    net = tuning.quadratic(a)
    start, end = tuning.weights(1.0, -0.5), tuning.weights(0.4, 0.6)
    hp = hparams(
      lr=0.3, momentum=0.0, weight_decay=0.2, schedule='constant', curve=curve
    )
    before, after = curve_states(hp, net, start, end)
    middle = np.asarray([0.7, 0.05])
    np.testing.assert_allclose(before.trained['w'], middle, rtol=1e-6)
    t = float(jax.random.uniform(keys.stream(KEY, 'position')))
    w = np.asarray(connectivity.curve_weights(t, curve), np.float64)
    point = w[0] * start.params['w'] + w[1] * middle + w[2] * end.params['w']
    want = middle - 0.3 * (w[1] * a * np.asarray(point) + 0.2 * middle)
    np.testing.assert_allclose(after.trained['w'], want, rtol=1e-5)
    if curve == 'bezier':
      np.testing.assert_allclose(w[1], 2 * t * (1 - t), rtol=1e-5)

  def test_ends_stay_as_the_curve_is_trained(self):
    end = NET.init(jax.random.key(1))
    _, after = curve_states(hparams(), NET, model(), end)
    chex.assert_trees_all_equal(after.rest.start, model())
    chex.assert_trees_all_equal(after.rest.end, end.params)

  def test_extra_gives_other_positions(self):
    near, far = run(t=0.2), run(t=0.6)
    chex.assert_trees_all_equal(near.extra, far.extra)
    params = connectivity.curve_point(
      model().params, near.extra['middle'], near.extra['end'], 0.6
    )
    chex.assert_trees_all_close(params, far.model.params, rtol=1e-5, atol=1e-6)

  def test_middle_is_trained(self):
    extra = run().extra
    straight = tree.interpolate(model().params, extra['end'], 0.5)
    gap = tree.norm(tree.subtract(extra['middle'], straight))
    self.assertGreater(float(gap), 1e-3)

  def test_phases_read_the_clean_set(self):
    end, curve, statistics = defenses.mcr(NET).phases
    for phase in (end, curve, statistics):
      self.assertEqual((phase.reads, phase.batch_size), ('clean', 128))
      self.assertFalse(phase.drop_last)
    self.assertTrue(end.augment and curve.augment)
    self.assertFalse(statistics.augment)
    lengths = [p.num_epochs for p in (end, curve, statistics)]
    self.assertEqual(lengths, [100, 100, 1])

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(end_epochs=0), '`end_epochs=0` must be positive'),
    (dict(t=1.1), r'`t=1.1` is not in \[0, 1\]'),
    (dict(curve='beziers'), "Did you mean 'bezier'"),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.mcr(NET, defenses.McrHParams(**values))
