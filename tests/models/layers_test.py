import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from flax import linen as nn

from bdjax.models import layers, taps


class PoolTest(parameterized.TestCase):
  @parameterized.parameters((6, 7), (1, 2), (5, 4))
  def test_overlapping_maxima_are_padded_on_all_sides(self, h, w):
    x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
    padded = np.pad(
      x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf
    )
    out = layers.max_pool3(jnp.asarray(x))
    self.assertEqual(out.shape, (2, (h + 1) // 2, (w + 1) // 2, 3))
    for i in range(out.shape[1]):
      for j in range(out.shape[2]):
        window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_array_equal(out[:, i, j], window.max((1, 2)))

  def test_gradients_of_overlapping_maxima(self):
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)  # ascending: last of each window
    grad = jax.grad(lambda x: layers.max_pool3(x).sum())(x)[0, :, :, 0]
    expected = np.zeros((4, 4))
    expected[1, 1] = expected[1, 3] = expected[3, 1] = expected[3, 3] = 1
    np.testing.assert_array_equal(grad, expected)

  def test_gradients_are_whole_where_maxima_are_computed_twice(self):
    """Equality with the maximum would find none, or give NaN."""
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 2))

    def loss(w, pool):
      y = pool(nn.relu(jnp.sin(x * w) * w + 0.3 * w * w))
      return jnp.sum(jnp.cos(y) * y)

    for pool in (layers.max_pool, layers.max_pool3):
      w = jnp.array([0.7, 1.9]).reshape(1, 1, 1, 2)
      eager = jax.grad(loss)(w, pool)
      compiled = jax.jit(jax.grad(loss), static_argnums=1)(w, pool)
      np.testing.assert_allclose(compiled, eager, rtol=1e-4)

  def test_equal_maxima_give_the_gradient_to_one(self):
    for pool in (layers.max_pool, layers.max_pool3):
      grad = jax.grad(lambda x, p=pool: p(x).sum())(jnp.ones((1, 2, 2, 1)))
      np.testing.assert_array_equal(np.sort(grad.ravel()), [0, 0, 0, 1])

  def test_averages_leave_out_a_last_odd_row(self):
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    out = layers.average_pool(x)[0, :, :, 0]
    np.testing.assert_array_equal(out, [[2.5, 4.5]])


class SpatialMeanTest(parameterized.TestCase):
  @parameterized.parameters(
    ((2, 5, 7, 3), jnp.float32, 1e-6), ((3, 7, 7, 40), jnp.bfloat16, 1e-2)
  )
  def test_mean_and_gradient(self, shape, dtype, tolerance):
    x = jnp.asarray(5 + np.random.default_rng(0).normal(size=shape), dtype)
    mean, pull = jax.vjp(layers.spatial_mean, x)
    self.assertEqual(mean.dtype, dtype)
    whole = np.asarray(x, np.float64)
    np.testing.assert_allclose(
      np.asarray(mean, np.float64), whole.mean((1, 2)), rtol=tolerance
    )
    (grad,) = pull(mean)
    want = np.broadcast_to(
      whole.mean((1, 2), keepdims=True) / whole[0, :, :, 0].size, shape
    )
    np.testing.assert_allclose(
      np.asarray(grad, np.float64), want, rtol=tolerance
    )

  def test_half_precision_adds_up_in_single(self):
    # Beyond 256 a sum kept in bfloat16 would no longer notice a 1.
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    self.assertEqual(layers.spatial_mean(x), 1)


class DivisibleTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, 8), (11.9, 16), (12, 16), (20, 24), (19, 24), (38.4, 40), (18, 24),
    (17, 16), (67.2, 64), (72.1, 72),
  )  # fmt: skip
  def test_nearest_multiple_of_8_not_much_below(self, channels, expected):
    self.assertEqual(layers.divisible(channels), expected)


class Net(nn.Module):
  """A function of x inside of a compact module."""

  run: object

  @nn.compact
  def __call__(self, x):
    return self.run(x)


class SqueezeExciteTest(parameterized.TestCase):
  def test_formula(self):
    tap = taps.Taps()
    net = Net(
      lambda x: layers.squeeze_excite('a.1', x, tap, 2, nn.relu, nn.sigmoid)
    )
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
    params = net.init(jax.random.key(1), x)['params']
    self.assertEqual(params['a_1_fc1']['kernel'].shape, (1, 1, 6, 2))
    out = net.apply({'params': params}, x)
    fc1, fc2 = params['a_1_fc1']['kernel'], params['a_1_fc2']['kernel']
    hidden = np.maximum(np.asarray(x).mean((1, 2)) @ fc1[0, 0], 0)
    gate = 1 / (1 + np.exp(-hidden @ np.asarray(fc2[0, 0])))
    expected = np.asarray(x) * gate[:, None, None]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    self.assertContainsSubset(('a.1.fc1', 'a.1.fc2.in'), tap.seen)


class DropExamplesTest(parameterized.TestCase):
  def run_net(self, rate, train, key=None):
    net = Net(lambda x: layers.drop_examples(x, rate, train))
    rngs = {} if key is None else {'dropout': key}
    return net.apply({}, jnp.ones((1000, 2, 3)), rngs=rngs)

  def test_whole_examples_are_dropped_and_the_others_scaled(self):
    out = self.run_net(0.2, True, jax.random.key(0))
    first = np.asarray(out[:, :1, :1])
    np.testing.assert_array_equal(out, np.broadcast_to(first, out.shape))
    np.testing.assert_allclose(np.unique(first), [0, 1.25])
    np.testing.assert_allclose((first == 0).mean(), 0.2, atol=0.05)

  @parameterized.parameters((0.2, False), (0.0, True))
  def test_no_key_is_needed_where_nothing_is_dropped(self, rate, train):
    np.testing.assert_array_equal(self.run_net(rate, train), 1)


class LayerNormTest(parameterized.TestCase):
  def test_far_from_zero(self):
    tap = taps.Taps()
    net = Net(lambda x: layers.through_layer_norm('ln', x, tap))
    x = 1000 + jax.random.normal(jax.random.key(0), (2, 3, 3, 64))
    out = net.apply(net.init(jax.random.key(1), x), x)
    exact = np.asarray(x, np.float64)
    exact = exact - exact.mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, exact, rtol=1e-3, atol=1e-3)
