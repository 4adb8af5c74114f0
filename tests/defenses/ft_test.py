"""FT: its guarantees, its step by hand, its messages."""

import chex
import jax
import numpy as np
from absl.testing import parameterized

from bdjax import defenses
from tests.defenses import tuning


def hparams(**values):
  base = dict(epochs=3, batch_size=tuning.NUM, schedule='constant', lr=0.05)
  return defenses.FtHParams(**base | values)


class FtTest(parameterized.TestCase):
  def test_running_statistics_move_once_per_step(self):
    model = tuning.NET.init(tuning.KEY)
    hp = hparams(lr=0.0, epochs=3)  # the weights stay, as do their batches
    after = tuning.tune(defenses.ft(tuning.NET, hp), model)
    mean, var = tuning.decayed(model, steps=3)
    got = after.batch_stats['bn0']
    np.testing.assert_allclose(got['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['var'], var, rtol=1e-4)

  def test_a_learning_rate_of_zero_leaves_the_weights_bit_identical(self):
    model = tuning.NET.init(tuning.KEY)
    after = tuning.tune(defenses.ft(tuning.NET, hparams(lr=0.0)), model)
    chex.assert_trees_all_equal(after.params, model.params)
    for name in model.batch_stats:
      moved = after.batch_stats[name]['var'] != model.batch_stats[name]['var']
      self.assertTrue(bool(moved.all()), name)

  def test_steps_on_a_quadratic(self):
    a, w = np.asarray([1.0, 2.0]), np.asarray([0.6, -0.5])
    hp = hparams(lr=0.1, momentum=0.9, weight_decay=0.02, batch_size=1)
    net = tuning.quadratic(a)
    after = tuning.tune(defenses.ft(net, hp), tuning.weights(*w), num=1)
    v = np.zeros(2)
    for _ in range(3):
      v = 0.9 * v + a * w + 0.02 * w
      w = w - 0.1 * v
    np.testing.assert_allclose(after.params['w'], w, rtol=1e-5)

  def test_rate_falls_over_all_epochs(self):
    a, w = np.asarray([1.0, 2.0]), np.asarray([0.6, -0.5])
    hp = hparams(
      lr=0.1, momentum=0.0, weight_decay=0.0, schedule='cosine_epoch', epochs=2
    )
    net = tuning.quadratic(a)
    after = tuning.tune(defenses.ft(net, hp), tuning.weights(*w), num=1)
    for rate in (0.1, 0.05):  # epochs 0 and 1 of 2
      w = w - rate * a * w
    np.testing.assert_allclose(after.params['w'], w, rtol=1e-5)

  def test_is_one_phase_on_the_clean_set_with_its_recipe(self):
    hp = defenses.FtHParams()
    (phase,) = defenses.ft(tuning.NET, hp).phases
    self.assertEqual((phase.reads, phase.augment), ('clean', True))
    self.assertEqual((phase.num_epochs, phase.batch_size), (100, 256))
    self.assertFalse(phase.drop_last)

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(batch_size=-1), '`batch_size=-1` must be positive'),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(momentum=-0.9), '`momentum=-0.9` must not be negative'),
    (dict(weight_decay=-1e-4), '`weight_decay=-0.0001` must not be negative'),
    (dict(t_max=0), '`t_max=0` must be positive'),
    (dict(schedule='cosine'), "Did you mean 'cosine_epoch'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.ft(tuning.NET, defenses.FtHParams(**values))

  def test_floats_are_leaves_and_counts_are_not(self):
    self.assertLen(jax.tree.leaves(defenses.FtHParams()), 3)
