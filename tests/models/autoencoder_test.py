"""The fully connected generator: its layers by hand, size, range, start."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models

KEY = jax.random.key(0)
MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.25, 0.125)


def images(num=3, height=4, width=5):
  rng = np.random.default_rng(0)
  return rng.uniform(size=(num, height, width, 3)).astype(np.float32)


def by_hand(params, x, mean=0.0, std=1.0):
  """The four layers in float64."""
  flat = ((np.float64(x) - mean) / std).reshape(len(x), -1)
  for name in ('encode1', 'encode2', 'decode1', 'decode2'):
    layer = params[name]
    flat = flat @ np.float64(layer['kernel']) + np.float64(layer['bias'])
    flat = np.tanh(flat) if name == 'decode2' else np.maximum(flat, 0)
  return flat.reshape(x.shape)


class AutoencoderTest(parameterized.TestCase):
  def test_layers_by_hand(self):
    net = models.autoencoder((4, 5, 3), width=7)
    params, x = net.init(KEY), images()
    out = net.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(out, by_hand(params, x), rtol=1e-4, atol=1e-6)
    self.assertGreater(float(jnp.std(out)), 1e-3)

  def test_images_are_normalized_in_front(self):
    net = models.autoencoder((4, 5, 3), mean=MEAN, std=STD, width=7)
    params, x = net.init(KEY), images()
    want = by_hand(params, x, MEAN, STD)
    np.testing.assert_allclose(
      net.apply(params, jnp.asarray(x)), want, rtol=1e-4, atol=1e-6
    )

  def test_values_end_at_one(self):
    net = models.autoencoder((4, 5, 3), width=7)
    params = jax.tree.map(lambda p: 100 * p, net.init(KEY))
    out = net.apply(params, jnp.asarray(images()))
    self.assertEqual(float(jnp.max(jnp.abs(out))), 1)

  def test_images_do_not_see_each_other(self):
    net = models.autoencoder((4, 5, 3), width=7)
    params, x = net.init(KEY), jnp.asarray(images())
    np.testing.assert_allclose(
      net.apply(params, x)[1:2],
      net.apply(params, x[1:2]),
      rtol=1e-5,
      atol=1e-6,
    )

  def test_start_is_uniform_by_fan_in(self):
    params = models.autoencoder((4, 5, 3), width=40).init(KEY)
    for name, fan_in in (('encode1', 60), ('encode2', 40), ('decode2', 40)):
      for leaf in params[name].values():
        largest = float(jnp.max(jnp.abs(leaf)))
        self.assertBetween(largest, 0.9 * fan_in**-0.5, fan_in**-0.5)

  @parameterized.parameters((32, 8.4e6), (64, 27e6), (224, 311e6))
  def test_published_size(self, size, documented):
    net = models.autoencoder((size, size, 3))
    params = jax.eval_shape(net.init, KEY)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    d, width = 3 * size**2, 1024
    kernels = 2 * d * width + 2 * width**2
    self.assertEqual(count, kernels + 3 * width + d)
    self.assertAlmostEqual(count / documented, 1, delta=0.02)

  def test_other_key_other_weights(self):
    net = models.autoencoder((4, 5, 3), width=7)
    one, same, other = (net.init(jax.random.key(k)) for k in (0, 0, 1))
    kernel = lambda params: np.asarray(params['encode1']['kernel'])
    np.testing.assert_array_equal(kernel(one), kernel(same))
    self.assertFalse(np.array_equal(kernel(one), kernel(other)))

  def test_bad_width(self):
    with self.assertRaisesRegex(ValueError, '`width=0` must be positive'):
      models.autoencoder((4, 5, 3), width=0)
