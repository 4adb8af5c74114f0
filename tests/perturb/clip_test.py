"""Tests of the clip whose gradient is 1 on the closed interval."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb

_X = jnp.array([-1.0, -1e-7, 0.0, 1e-7, 0.5, 1 - 1e-7, 1.0, 1 + 2e-7, 3.0])
_SLOPE = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


class ClipUnitTest(parameterized.TestCase):
  def test_value(self):
    np.testing.assert_array_equal(perturb.clip_unit(_X), np.clip(_X, 0, 1))

  @parameterized.parameters(jax.jacrev, jax.jacfwd)
  def test_slope_is_one_on_the_closed_interval(self, jacobian):
    np.testing.assert_array_equal(
      jacobian(perturb.clip_unit)(_X), np.diag(_SLOPE)
    )

  def test_a_plain_clip_would_halve_it(self):
    """What the custom gradient is for; else it could go."""
    plain = jax.grad(lambda x: jnp.clip(x, 0, 1))
    self.assertEqual(plain(1.0), 0.5)
    self.assertEqual(jax.grad(perturb.clip_unit)(1.0), 1.0)

  def test_gradient_passes_the_cotangent(self):
    weight = jnp.arange(1.0, 10.0)
    got = jax.grad(lambda x: jnp.sum(weight * perturb.clip_unit(x)))(_X)
    np.testing.assert_array_equal(got, weight * jnp.array(_SLOPE))

  def test_second_order(self):
    f = lambda x: jnp.sum(perturb.clip_unit(x) ** 3)
    hessian = jax.jit(jax.hessian(f))(_X)
    np.testing.assert_allclose(
      hessian, np.diag(6 * np.clip(_X, 0, 1) * np.array(_SLOPE)), rtol=1e-6
    )

  def test_jit_and_vmap(self):
    got = jax.jit(jax.vmap(jax.grad(perturb.clip_unit)))(_X)
    np.testing.assert_array_equal(got, _SLOPE)
