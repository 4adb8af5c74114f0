"""Tests of the learning-rate schedules against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import optim, types
from tests.reference import golden


def _clock(step=0, epoch=0, num_steps=1000, num_epochs=100):
  return types.Clock(
    key=jax.random.key(0),
    step=jnp.int32(step),
    epoch=jnp.int32(epoch),
    num_steps=num_steps,
    num_epochs=num_epochs,
  )


class SchedulesTest(parameterized.TestCase):
  def test_constant(self):
    schedule = optim.constant(0.3)
    for step in (0, 7):
      self.assertEqual(schedule(_clock(step)), jnp.float32(0.3))

  @parameterized.parameters((0, 0.01), (50, 0.005), (99, 2.467199e-6))
  def test_cosine_epochs_at_t_max_100(self, epoch, expected):
    schedule = optim.cosine_epochs(0.01, 100)
    lr = schedule(_clock(epoch=epoch))
    np.testing.assert_allclose(lr, expected, rtol=1e-5)

  def test_cosine_epochs_stops_half_way_on_50_epochs_of_gtsrb(self):
    schedule = optim.cosine_epochs(0.01, 100)
    lr = schedule(_clock(epoch=49, num_epochs=50))
    np.testing.assert_allclose(lr, 0.005157, rtol=1e-4)

  def test_cosine_epochs_defaults_to_the_length_of_the_phase(self):
    schedule = optim.cosine_epochs(0.01)
    lr = [schedule(_clock(epoch=e, num_epochs=4)) for e in range(5)]
    half = 0.5 * 2**-0.5
    expected = np.array([1, 0.5 + half, 0.5, 0.5 - half, 0]) * 0.01
    np.testing.assert_allclose(np.stack(lr), expected, rtol=1e-5, atol=1e-10)

  def test_cosine_epochs_ignores_the_step(self):
    schedule = optim.cosine_epochs(0.01, 10)
    np.testing.assert_array_equal(
      schedule(_clock(step=30, epoch=3)), schedule(_clock(step=39, epoch=3))
    )

  @parameterized.parameters('epoch', 'step')
  def test_cosines_equal_torch(self, unit):
    expected = golden.arrays('optim_extras')['cosine_tmax100_lr']
    make = optim.cosine_epochs if unit == 'epoch' else optim.cosine_steps
    schedule = make(0.01, 100)
    lr = jax.vmap(lambda k: schedule(_clock()._replace(**{unit: k})))(
      jnp.arange(len(expected))
    )
    np.testing.assert_allclose(lr, expected, rtol=1e-5, atol=1e-10)

  def test_cosine_steps_is_periodic_over_long_runs(self):
    schedule = optim.cosine_steps(0.01, 100)
    np.testing.assert_array_equal(
      schedule(_clock(step=200 * 100_000 + 77)), schedule(_clock(step=77))
    )

  @parameterized.parameters(
    (0, 0.1), (9, 0.1), (10, 0.02), (14, 0.02), (15, 0.004), (99, 0.004)
  )
  def test_step_epochs_drops_when_the_boundary_begins(self, epoch, expected):
    schedule = optim.step_epochs(0.1, (10, 15), 0.2)
    np.testing.assert_allclose(
      schedule(_clock(epoch=epoch)), expected, rtol=1e-6
    )

  @parameterized.parameters(
    optim.constant,
    optim.cosine_epochs,
    lambda lr: optim.cosine_steps(lr, 10),
    lambda lr: optim.step_epochs(lr, (1,), 0.5),
  )
  def test_rates_may_be_traced(self, make):
    clock = _clock(step=3, epoch=3)
    rates = jnp.array([0.1, 0.2])
    got = jax.jit(jax.vmap(lambda lr: make(lr)(clock)))(rates)
    expected = [make(float(lr))(clock) for lr in rates]
    np.testing.assert_allclose(got, np.stack(expected), rtol=1e-6)
    self.assertEqual(got.dtype, jnp.float32)

  def test_python_clock(self):
    clock = types.Clock(jax.random.key(0), 5, 1, 10, 2)
    self.assertAlmostEqual(float(optim.cosine_epochs(1.0)(clock)), 0.5, 6)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'lr=-0.1.*not be negative'):
      optim.constant(-0.1)
    with self.assertRaisesRegex(ValueError, 't_max=0.*positive'):
      optim.cosine_epochs(0.1, 0)
    with self.assertRaisesRegex(ValueError, 't_max=-1.*positive'):
      optim.cosine_steps(0.1, -1)
    with self.assertRaisesRegex(ValueError, r'\(5, 3\).*in order'):
      optim.step_epochs(0.1, (5, 3), 0.1)
