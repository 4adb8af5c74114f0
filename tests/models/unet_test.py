"""U-Nets: the transposed convolution, shapes, normalization, independence."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models
from bdjax.models import layers

KEY = jax.random.key(0)


def images(size, num=3, channels=3):
  rng = np.random.default_rng(0)
  return rng.uniform(size=(num, size, size, channels)).astype(np.float32)


class UNetTest(parameterized.TestCase):
  @parameterized.parameters(((3, 4, 5), 2), ((1, 1, 2), 3))
  def test_transposed_convolution_equals_that_of_jax(self, shape, d):
    rng = np.random.default_rng(1)
    # Small integers: sums are exact in whatever order.
    x = rng.integers(-8, 9, (2, *shape)).astype(np.float32)
    kernel = rng.integers(-8, 9, (2, 2, shape[-1], d)).astype(np.float32)
    want = jax.lax.conv_transpose(
      x,
      np.flip(kernel, (0, 1)),  # theirs is laid over the dilated image
      (2, 2),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    got = layers.transposed_conv(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_array_equal(got, want)

  def test_instance_norm_by_hand(self):
    x = images(4) * np.asarray([1.0, 10.0, 0.1]) + 5
    want = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(
      x.var((1, 2), keepdims=True) + 1e-5
    )
    got = layers.instance_norm(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)

  @parameterized.parameters((8, 2), (12, 2), (16, 3), (32, 4), (64, 4), (2, 1))
  def test_depth_by_default(self, size, levels):
    net = models.unet((size, size, 3), width=1)
    self.assertEqual(net.levels, levels)
    x = jnp.asarray(images(size))
    out = jax.eval_shape(net.apply, jax.eval_shape(net.init, KEY), x)
    self.assertEqual(out.shape, x.shape)

  def test_parameter_shapes(self):
    net = models.unet((8, 8, 3), width=4, levels=2)
    shapes = jax.tree.map(np.shape, net.init(KEY), is_leaf=lambda x: x is None)
    block = lambda a, b: {
      'conv1': {'kernel': (3, 3, a, b)},
      'conv2': {'kernel': (3, 3, b, b)},
    }
    up = lambda a, b: {'up': {'kernel': (2, 2, a, b), 'bias': (b,)}}
    self.assertEqual(
      shapes,
      {
        'down0': block(3, 4),
        'down1': block(4, 8),
        'bottom': block(8, 16),
        'up1': up(16, 8) | block(16, 8),
        'up0': up(8, 4) | block(8, 4),
        'head': {'kernel': (1, 1, 4, 3), 'bias': (3,)},
      },
    )

  def test_published_size(self):
    # 32 channels, four levels: 16 maxima and the head, biases of the
    # convolutions in front of norms left out.
    params = jax.eval_shape(models.unet((32, 32, 3)).init, KEY)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    widths = [32, 64, 128, 256, 512]
    down = 9 * (3 * 32 + 32**2) + sum(
      9 * (a * b + b * b) for a, b in zip(widths, widths[1:], strict=False)
    )
    up = sum(4 * 2 * d * d + d + 9 * 3 * d * d for d in widths[:-1])
    self.assertEqual(count, down + up + 32 * 3 + 3)

  def test_normalizes_in_front_and_undoes_behind(self):
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.25, 0.125)
    plain = models.unet((8, 8, 3), width=2)
    net = models.unet((8, 8, 3), mean=mean, std=std, width=2)
    params, x = net.init(KEY), images(8)
    want = plain.apply(params, (x - np.float32(mean)) / np.float32(std))
    want = np.asarray(want) * np.float32(std) + np.float32(mean)
    np.testing.assert_allclose(
      net.apply(params, jnp.asarray(x)), want, rtol=1e-4, atol=1e-5
    )

  def test_images_do_not_see_each_other(self):
    net = models.unet((8, 8, 3), width=2)
    params, x = net.init(KEY), jnp.asarray(images(8))
    apply = jax.jit(net.apply)
    np.testing.assert_allclose(
      apply(params, x)[1:2], apply(params, x[1:2]), rtol=1e-4, atol=1e-5
    )

  def test_every_parameter_gets_a_gradient(self):
    net = models.unet((8, 8, 3), width=2)
    x = jnp.asarray(images(8))
    loss = lambda params: jnp.sum(net.apply(params, x) ** 2)
    grads = jax.jit(jax.grad(loss))(net.init(KEY))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
      self.assertTrue(bool(jnp.all(jnp.isfinite(grad))), path)
      self.assertGreater(float(jnp.max(jnp.abs(grad))), 0, path)

  def test_other_key_other_weights(self):
    net = models.unet((8, 8, 3), width=2)
    one, same, other = (net.init(jax.random.key(k)) for k in (0, 0, 1))
    kernel = lambda params: np.asarray(params['head']['kernel'])
    np.testing.assert_array_equal(kernel(one), kernel(same))
    self.assertFalse(np.array_equal(kernel(one), kernel(other)))

  @parameterized.parameters(
    (dict(levels=3), r'`levels=3` cannot halve 12×12 .* multiples of 8'),
    (dict(levels=0), '`levels=0` must be positive'),
    (dict(width=0), '`width=0` must be positive'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      models.unet((12, 12, 3), **values)

  def test_odd_images_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'multiples of 2'):
      models.unet((7, 7, 3))
