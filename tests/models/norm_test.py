import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.models import norm


def reference(x, scale, bias, eps=1e-5):
  """BatchNorm by two passes, in the precision of its arguments."""
  mean = x.mean((0, 1, 2), keepdims=True)
  var = ((x - mean) ** 2).mean((0, 1, 2), keepdims=True)
  scale, bias = scale.reshape(1, 1, 1, -1), bias.reshape(1, 1, 1, -1)
  return (x - mean) / jnp.sqrt(var + eps) * scale + bias


def make(c=3, **variables):
  """Variables of one layer with the given leaves replaced."""
  params = {'scale': jnp.ones(c), 'bias': jnp.zeros(c)}
  stats = {'mean': jnp.zeros(c), 'var': jnp.ones(c)}
  for name, value in variables.items():
    (params if name in params else stats)[name] = jnp.asarray(value)
  return {'params': params, 'batch_stats': stats}


def apply(variables, x, train):
  out, new = norm.BatchNorm().apply(
    variables, x, train, mutable=['batch_stats']
  )
  return out, new['batch_stats']


class MomentsTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 10.0, 100.0)
  def test_against_float64(self, offset):
    x = np.random.default_rng(0).normal(offset, 1, (64, 8, 8, 5))
    x = x.astype(np.float32)
    mean, var = norm.moments(jnp.asarray(x))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(
      mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6
    )
    # Cancellation in E[x²] − E[x]² costs about 1e-7·mean².
    atol = 4e-7 * (offset**2 + 1)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=0, atol=atol)

  def test_variance_is_never_negative(self):
    offsets = np.linspace(100, 1000, 64, dtype=np.float32) + np.float32(0.1)
    x = jnp.broadcast_to(jnp.asarray(offsets), (7, 3, 3, 64))
    _, var = norm.moments(x)
    self.assertGreaterEqual(float(var.min()), 0)

  def test_low_precision_is_summed_in_float32(self):
    x = jnp.ones((64, 32, 32, 1), jnp.bfloat16)
    mean, var = norm.moments(x)
    self.assertEqual(mean.dtype, jnp.float32)
    self.assertEqual((float(mean[0]), float(var[0])), (1.0, 0.0))

  def test_unbiased_of_one_value_is_finite(self):
    self.assertEqual(norm.unbiased(2.0, 1), 2.0)
    self.assertAlmostEqual(norm.unbiased(2.0, 5), 2.5)


class BatchNormTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 30.0)
  def test_value_and_gradients_against_float64(self, offset):
    rng = np.random.default_rng(1)
    x = rng.normal(offset, 2, (16, 4, 4, 3)).astype(np.float32)
    weights, scale, bias = (
      rng.normal(size=s).astype(np.float32) for s in (x.shape, (3,), (3,))
    )

    def ours(x, scale, bias):
      out, _ = apply(make(scale=scale, bias=bias), x, True)
      return jnp.sum(out * weights), out

    def theirs(x, scale, bias):
      out = reference(x, scale, bias)
      return jnp.sum(out * jnp.asarray(weights, x.dtype)), out

    grad = lambda fn: jax.jit(jax.grad(fn, (0, 1, 2), has_aux=True))
    out = grad(ours)(*map(jnp.asarray, (x, scale, bias)))
    with jax.enable_x64(True):
      args = [jnp.asarray(a, jnp.float64) for a in (x, scale, bias)]
      expected = grad(theirs)(*args)
    for a, b in zip(
      jax.tree.leaves(out), jax.tree.leaves(expected), strict=True
    ):
      tolerance = 3e-6 * (1 + offset**2 / 4) * np.abs(b).max()
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)

  def test_training_moves_the_running_statistics_by_hand(self):
    # Values 1, 3 in the channel: mean 2, biased variance 1, unbiased 2.
    x = jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1)
    _, stats = apply(make(1, mean=[10.0], var=[4.0]), x, True)
    np.testing.assert_allclose(stats['mean'], [0.9 * 10 + 0.1 * 2], rtol=1e-6)
    np.testing.assert_allclose(stats['var'], [0.9 * 4 + 0.1 * 2], rtol=1e-6)

  def test_training_normalizes_by_the_biased_variance(self):
    x = jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1)
    out, _ = apply(make(1), x, True)
    np.testing.assert_allclose(out.reshape(-1), [-1.0, 1.0], rtol=1e-4)

  def test_inference_uses_and_leaves_the_running_statistics(self):
    variables = make(1, mean=[2.0], var=[4.0], scale=[3.0], bias=[5.0])
    x = jnp.asarray([2.0, 4.0]).reshape(2, 1, 1, 1)
    out, stats = apply(variables, x, False)
    np.testing.assert_allclose(out.reshape(-1), [5.0, 8.0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])

  def test_a_single_value_per_channel_is_finite(self):
    out, stats = apply(make(), jnp.full((1, 1, 1, 3), 7.0), True)
    np.testing.assert_allclose(out, 0, atol=1e-6)
    np.testing.assert_allclose(stats['var'], 0.9, rtol=1e-6)
    np.testing.assert_allclose(stats['mean'], 0.7, rtol=1e-6)

  def test_a_constant_channel_has_finite_gradients(self):
    x = jnp.full((4, 2, 2, 3), 0.3)
    fn = jax.grad(lambda x: jnp.sum(apply(make(), x, True)[0] ** 2))
    grad = jax.jit(fn)(x)
    self.assertTrue(bool(jnp.all(jnp.isfinite(grad))))

  def test_vectors(self):
    x = jax.random.normal(jax.random.key(0), (64, 3))
    out, _ = apply(make(), x, True)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1, rtol=1e-4)

  def test_low_precision_activations_keep_their_dtype(self):
    x = jnp.ones((4, 2, 2, 3), jnp.bfloat16)
    out, stats = apply(make(), x, True)
    self.assertEqual(out.dtype, jnp.bfloat16)
    self.assertEqual(stats['var'].dtype, jnp.float32)
