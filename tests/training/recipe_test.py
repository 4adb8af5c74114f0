"""The recipe: schedules by name, the optimizer by hand, messages."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import training, types


def clock(step, epoch=0, num_steps=1000, num_epochs=10):
  return types.Clock(jax.random.key(0), step, epoch, num_steps, num_epochs)


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    # constant
    ('constant', None, clock(0), 0.2),
    ('constant', None, clock(999, 9), 0.2),
    # one cosine over all epochs, constant within an epoch
    ('cosine_epoch', None, clock(0), 0.2),
    ('cosine_epoch', None, clock(77), 0.2),
    ('cosine_epoch', None, clock(500, 5), 0.1),
    # a longer half period stops half-way
    ('cosine_epoch', 20, clock(999, 10), 0.1),
    # per step, 100 steps unless given, and up again
    ('cyclic_iter', None, clock(50), 0.1),
    ('cyclic_iter', None, clock(100), 0.0),
    ('cyclic_iter', None, clock(200), 0.2),
    ('cyclic_iter', 10, clock(5), 0.1),
    # a tenth after every 100 epochs unless given
    ('step_epoch', None, clock(999, 9), 0.2),
    ('step_epoch', 4, clock(399, 3), 0.2),
    ('step_epoch', 4, clock(400, 4), 0.02),
    ('step_epoch', 4, clock(999, 9), 0.002),
  )
  def test_by_name(self, name, t_max, at, want):
    rate = training.schedule(name, 0.2, t_max)(at)
    np.testing.assert_allclose(rate, want, atol=1e-7)

  def test_rate_may_be_traced(self):
    at = clock(500, 5)
    rates = jax.vmap(lambda lr: training.schedule('cosine_epoch', lr, None)(at))
    np.testing.assert_allclose(
      rates(jnp.asarray([0.0, 0.2])), [0.0, 0.1], atol=1e-7
    )

  @parameterized.parameters(
    ('cosine', 0.1, None, "`schedule='cosine'`.*Did you mean 'cosine_epoch'"),
    ('constant', -0.1, None, '`lr=-0.1` must not be negative'),
    ('cyclic_iter', 0.1, 0, '`t_max=0` must be positive'),
  )
  def test_bad_values(self, name, lr, t_max, message):
    with self.assertRaisesRegex(ValueError, message):
      training.schedule(name, lr, t_max)


class OptimizerTest(parameterized.TestCase):
  def test_two_steps_by_hand(self):
    hp = training.RecipeHParams(
      lr=0.1, momentum=0.5, weight_decay=0.2, schedule='constant'
    )
    tx = training.optimizer(hp)
    params, g = {'w': jnp.asarray([1.0, -2.0])}, np.asarray([0.3, 0.4])
    state, w, v = tx.init(params), np.asarray([1.0, -2.0]), np.zeros(2)
    for step in range(2):
      updates, state = tx.update(
        {'w': jnp.asarray(g, jnp.float32)}, state, params, clock=clock(step)
      )
      params = {'w': params['w'] + updates['w']}
      v = 0.5 * v + g + 0.2 * w
      w = w - 0.1 * v
    np.testing.assert_allclose(params['w'], w, rtol=1e-6)

  def test_defaults_are_the_benchmark_s(self):
    hp = training.RecipeHParams()
    self.assertEqual((hp.epochs, hp.batch_size), (100, 128))
    self.assertEqual((hp.lr, hp.momentum, hp.weight_decay), (0.01, 0.9, 5e-4))
    rate = training.schedule(hp.schedule, hp.lr, hp.t_max)
    at = clock(0, 50, num_epochs=100)
    np.testing.assert_allclose(rate(at), 0.005, rtol=1e-6)

  @parameterized.parameters(
    (dict(momentum=-1.0), '`momentum=-1.0` must not be negative'),
    (dict(weight_decay=-1.0), '`weight_decay=-1.0` must not be negative'),
    (dict(schedule='step'), 'Known: constant, cosine_epoch, cyclic_iter'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      training.optimizer(training.RecipeHParams(**values))
