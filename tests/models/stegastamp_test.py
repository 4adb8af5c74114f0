"""StegaStamp: shapes as published, layers by hand, independence, ranges."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def images(size=8, num=3, channels=3):
  return jnp.asarray(RNG.uniform(size=(num, size, size, channels)), jnp.float32)


def bits(num=3, count=6):
  return jnp.asarray(RNG.integers(0, 2, (num, count)), jnp.float32)


def small(**kwargs):
  net = models.stegastamp((8, 8, 3), num_bits=6, width=2, **kwargs)
  return net, net.init(KEY)


def with_head(params, bias):
  """Parameters whose encoder returns one number everywhere."""
  head = {
    'kernel': jnp.zeros_like(params['head']['kernel']),
    'bias': jnp.full_like(params['head']['bias'], bias),
  }
  return params | {'head': head}


class StegaStampTest(parameterized.TestCase):
  def test_parameter_shapes_as_published(self):
    net = models.stegastamp((32, 32, 3))
    params = jax.eval_shape(net.init, KEY)
    kernels = {
      part: {name: layer['kernel'].shape for name, layer in layers.items()}
      for part, layers in params.items()
    }
    self.assertEqual(
      kernels['encoder'],
      {
        'message': (100, 768),
        'first': (3, 3, 6, 32),
        'down1': (3, 3, 32, 32),
        'down2': (3, 3, 32, 64),
        'down3': (3, 3, 64, 128),
        'down4': (3, 3, 128, 256),
        'up4': (2, 2, 256, 128),
        'merge4': (3, 3, 256, 128),
        'up3': (2, 2, 128, 64),
        'merge3': (3, 3, 128, 64),
        'up2': (2, 2, 64, 32),
        'merge2': (3, 3, 64, 32),
        'up1': (2, 2, 32, 32),
        'merge1': (3, 3, 70, 32),
        'last': (3, 3, 32, 32),
        'head': (1, 1, 32, 3),
      },
    )
    self.assertEqual(
      kernels['decoder'],
      {
        'conv1': (3, 3, 3, 32),
        'conv2': (3, 3, 32, 32),
        'conv3': (3, 3, 32, 64),
        'conv4': (3, 3, 64, 64),
        'conv5': (3, 3, 64, 64),
        'conv6': (3, 3, 64, 128),
        'conv7': (3, 3, 128, 128),
        'dense': (128, 512),
        'head': (512, 100),
      },
    )

  @parameterized.parameters(
    (8, 3), (12, 2), (16, 4), (32, 4), (64, 4), (224, 4)
  )
  def test_any_even_side(self, size, levels):
    net = models.stegastamp((size, size, 3), num_bits=5, width=1)
    self.assertEqual(net.levels, levels)
    params = jax.eval_shape(net.init, KEY)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    m = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    hidden = jax.eval_shape(net.hide, params['encoder'], x, m)
    self.assertEqual(hidden.shape, x.shape)
    logits = jax.eval_shape(net.reveal, params['decoder'], hidden)
    self.assertEqual(logits.shape, (2, 5))

  @parameterized.parameters((32, 128), (64, 512))
  def test_decoder_flattens_the_published_number_of_values(self, size, want):
    params = jax.eval_shape(models.stegastamp((size, size, 3)).init, KEY)
    flat = params['decoder']['dense']['kernel'].shape[0]
    self.assertEqual(flat, want)
    self.assertEqual(flat, size**2 * 128 // 1024)

  @parameterized.parameters((0.0, 0.5), (2.0, 1 / (1 + np.exp(-2))))
  def test_a_head_of_zeros_paints_one_color(self, bias, want):
    net, params = small()
    got = net.hide(with_head(params['encoder'], bias), images(), bits())
    np.testing.assert_allclose(got, np.full((3, 8, 8, 3), want), rtol=1e-6)

  @parameterized.parameters(0.0, 0.25, -0.25)
  def test_residual_adds_to_the_image(self, bias):
    net, params = small(residual=True)
    x = images()
    got = net.hide(with_head(params['encoder'], bias), x, bits())
    np.testing.assert_allclose(got, np.clip(x + bias, 0, 1), rtol=1e-6)

  def test_the_picture_of_the_bits_by_hand(self):
    # One channel, a 4×4 image, no other weights: what the skip to the last
    # level sees is the bits' picture beside the image.
    net = models.stegastamp((4, 4, 1), num_bits=2, width=1)
    zero = jax.tree.map(jnp.zeros_like, net.init(KEY)['encoder'])
    rows = RNG.integers(-4, 5, (2, 16)).astype(np.float32)
    plane_channel = 2  # of [skip, up, plane, image]
    merge = zero['merge1']['kernel'].at[1, 1, plane_channel, 0].set(1.0)
    params = zero | {
      'message': {'kernel': jnp.asarray(rows), 'bias': jnp.ones(16)},
      'merge1': {'kernel': merge, 'bias': jnp.zeros(1)},
      'last': {
        'kernel': zero['last']['kernel'].at[1, 1].set(1.0),
        'bias': jnp.zeros(1),
      },
      'head': {'kernel': jnp.ones((1, 1, 1, 1)), 'bias': jnp.zeros(1)},
    }
    got = net.hide(params, jnp.zeros((1, 4, 4, 1)), jnp.array([[1.0, 1.0]]))
    plane = np.maximum(rows.sum(0) + 1, 0).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-plane)), rtol=1e-6)

  def test_large_images_repeat_the_picture_of_the_bits(self):
    net = models.stegastamp((32, 64, 3), num_bits=2, width=1)
    message = jax.eval_shape(net.init, KEY)['encoder']['message']['kernel']
    self.assertEqual(message.shape, (2, 16 * 16 * 3))

  def test_bits_and_images_matter(self):
    net, params = small()
    x, m = images(), bits()
    first = net.hide(params['encoder'], x, m)
    self.assertFalse(np.allclose(first, net.hide(params['encoder'], x, 1 - m)))
    self.assertFalse(np.allclose(first, net.hide(params['encoder'], 1 - x, m)))
    self.assertBetween(float(first.min()), 0, 1)
    self.assertBetween(float(first.max()), 0, 1)

  def test_images_do_not_see_each_other(self):
    net, params = small()
    x, m = images(), bits()
    hidden = net.hide(params['encoder'], x, m)
    alone = net.hide(params['encoder'], x[1:2], m[1:2])
    np.testing.assert_allclose(hidden[1:2], alone, rtol=1e-4, atol=1e-6)
    read = net.reveal(params['decoder'], x)
    alone = net.reveal(params['decoder'], x[1:2])
    np.testing.assert_allclose(read[1:2], alone, rtol=1e-4, atol=1e-6)

  def test_every_layer_gets_a_gradient(self):
    net = models.stegastamp((8, 8, 3), num_bits=6, width=4)
    x, m = images(), bits()

    def loss(params):
      hidden = net.hide(params['encoder'], x, m)
      return jnp.sum(net.reveal(params['decoder'], hidden) ** 2)

    grads = jax.jit(jax.grad(loss))(net.init(KEY))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
      self.assertTrue(bool(jnp.all(jnp.isfinite(grad))), path)
      self.assertGreater(float(jnp.max(jnp.abs(grad))), 0, path)

  def test_start(self):
    params = models.stegastamp((8, 8, 3), num_bits=6, width=16).init(KEY)
    kernel = params['encoder']['merge1']['kernel']
    fan_in = np.prod(kernel.shape[:3])
    deviation = (2 / fan_in) ** 0.5
    np.testing.assert_allclose(jnp.std(kernel), deviation, rtol=0.1)
    for layer in params['decoder'].values():
      np.testing.assert_array_equal(layer['bias'], 0)

  @parameterized.parameters(
    (dict(num_bits=0), '`num_bits=0` must be positive'),
    (dict(width=-1), '`width=-1` must be positive'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      models.stegastamp((8, 8, 3), **values)
    with self.assertRaisesRegex(ValueError, 'multiples of 2'):
      models.stegastamp((9, 9, 3))
