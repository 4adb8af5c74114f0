"""PoisonInk's networks: up-sampling, norms and shapes by hand, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models
from bdjax.models import functional, ink

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def images(num=3, size=8, channels=3):
  shape = num, size, size, channels
  return jnp.asarray(RNG.uniform(size=shape), jnp.float32)


def small(**kwargs):
  net = models.ink_networks(
    (8, 8, 3), **{'width': 2, 'reveal_width': 3} | kwargs
  )
  return net, net.init(KEY)


class InkNetworksTest(parameterized.TestCase):
  def test_doubling_keeps_the_corners(self):
    x = jnp.array([0.0, 3.0]).reshape(1, 1, 2, 1)
    got = ink.doubled(x)
    self.assertEqual(got.shape, (1, 2, 4, 1))
    np.testing.assert_allclose(got[0, 0, :, 0], [0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(got[0, 1], got[0, 0], atol=1e-6)

  @parameterized.parameters(1, 2, 3, 8)
  def test_doubling_equals_linear_interpolation(self, n):
    rows = RNG.uniform(size=n)
    got = ink.doubled(jnp.asarray(rows, jnp.float32).reshape(1, n, 1, 1))
    want = np.interp(np.linspace(0, n - 1, 2 * n), np.arange(n), rows)
    np.testing.assert_allclose(got[0, :, 0, 0], want, atol=1e-6)
    np.testing.assert_allclose(got[0, :, 1, 0], want, atol=1e-6)

  def test_halving_takes_the_maxima(self):
    x = images(size=6)
    want = np.asarray(x).reshape(3, 3, 2, 3, 2, 3).max((2, 4))
    np.testing.assert_array_equal(ink._halved(x), want)
    flat = jax.grad(lambda x: jnp.sum(ink._halved(x)))(jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_array_equal(flat, 0.25)

  def test_spread_convolution_is_the_transposed_one(self):
    x = jnp.asarray(RNG.integers(-8, 9, (2, 3, 5, 2)), jnp.float32)
    kernel = jnp.asarray(RNG.integers(-8, 9, (4, 4, 2, 3)), jnp.float32)
    got = functional.conv({'kernel': kernel}, ink._spread(x), padding=(2, 2))
    want = jax.lax.conv_transpose(
      x, kernel, (2, 2), ((2, 2), (2, 2)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    self.assertEqual(got.shape, (2, 6, 10, 3))
    np.testing.assert_array_equal(got, want)

  def test_hiding_network_as_published(self):
    params = jax.eval_shape(models.ink_networks((32, 32, 3)).init, KEY)['hide']
    shape = lambda name, i: params[name][i]['conv']['kernel'].shape
    got = {name: shape(name, '1')[2:] for name in params if name != 'head'}
    self.assertEqual(
      got,
      {
        'down0': (6, 64),
        'down1': (64, 128),
        'down2': (128, 256),
        'down3': (256, 512),
        'down4': (512, 512),
        'up4': (1024, 256),
        'up3': (512, 128),
        'up2': (256, 64),
        'up1': (128, 64),
      },
    )
    for name, (_, out) in got.items():
      self.assertEqual(shape(name, '2'), (3, 3, out, out))
    self.assertEqual(params['head']['kernel'].shape, (1, 1, 64, 3))
    self.assertEqual(params['head']['bias'].shape, (3,))

  def test_revealing_network_as_published(self):
    params = jax.eval_shape(models.ink_networks((32, 32, 3)).init, KEY)
    shapes = {
      name: part['conv']['kernel'].shape
      for name, part in params['reveal'].items()
      if name != 'head'
    }
    self.assertEqual(shapes.pop('conv1'), (3, 3, 3, 128))
    self.assertEqual(shapes.pop('back'), (4, 4, 128, 128))
    self.assertEqual(set(shapes.values()), {(3, 3, 128, 128)})
    self.assertLen(shapes, 3 + 14)

  @parameterized.parameters((8, 2), (12, 2), (16, 3), (32, 4), (64, 4))
  def test_shapes_of_what_comes_out(self, size, levels):
    net = models.ink_networks((size, size, 3), width=1, reveal_width=1)
    self.assertEqual(net.levels, levels)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def run(key, x):
      params, stats = net.init(key), net.init_stats()
      hidden, after = net.hide(params['hide'], stats, x, x, True)
      return hidden, net.reveal(params['reveal'], hidden), stats, after

    hidden, revealed, stats, after = jax.eval_shape(run, KEY, x)
    self.assertEqual((hidden.shape, revealed.shape), (x.shape, x.shape))
    self.assertEqual(stats, after)

  def test_training_moves_the_statistics_towards_the_batch(self):
    net, params = small()
    x, secret = images(), images()
    both = jnp.concatenate([x, secret], -1)
    seen = np.asarray(
      functional.conv(params['hide']['down0']['1']['conv'], both), np.float64
    )
    _, stats = net.hide(params['hide'], net.init_stats(), x, secret, True)
    first = stats['down0']['1']
    mean = seen.mean((0, 1, 2))
    np.testing.assert_allclose(first['mean'], 0.1 * mean, rtol=1e-3, atol=1e-6)
    count = seen.size / seen.shape[-1]
    var = seen.var((0, 1, 2)) * count / (count - 1)
    np.testing.assert_allclose(first['var'], 0.9 + 0.1 * var, rtol=1e-4)

  def test_inference_keeps_statistics_and_images_apart(self):
    net, params = small()
    x, secret = images(), images()
    _, stats = net.hide(params['hide'], net.init_stats(), x, secret, True)
    both, same = net.hide(params['hide'], stats, x, secret)
    jax.tree.map(np.testing.assert_array_equal, stats, same)
    alone, _ = net.hide(params['hide'], stats, x[1:2], secret[1:2])
    np.testing.assert_allclose(both[1:2], alone, rtol=1e-4, atol=1e-6)
    trained, _ = net.hide(params['hide'], stats, x, secret, True)
    self.assertFalse(np.allclose(both, trained))

  def test_every_layer_gets_a_gradient(self):
    net, params = small(width=4, reveal_width=8)
    x, secret = images(), images()

    def loss(params):
      hidden, _ = net.hide(params['hide'], net.init_stats(), x, secret, True)
      return jnp.sum((net.reveal(params['reveal'], hidden) - 1) ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
      self.assertTrue(bool(jnp.all(jnp.isfinite(grad))), path)
      self.assertGreater(float(jnp.max(jnp.abs(grad))), 0, path)

  def test_nothing_negative_is_revealed(self):
    net, params = small()
    self.assertGreaterEqual(
      float(net.reveal(params['reveal'], images()).min()), 0
    )

  def test_start(self):
    params = models.ink_networks((8, 8, 3), width=16, reveal_width=16).init(KEY)
    kernels = [
      leaf.ravel()
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
      if path[-1].key == 'kernel'
    ]
    np.testing.assert_allclose(
      jnp.std(jnp.concatenate(kernels)), 0.02, rtol=0.02
    )
    norm = params['hide']['down0']['1']['norm']
    np.testing.assert_array_equal(norm['scale'], 1)
    np.testing.assert_array_equal(norm['bias'], 0)

  @parameterized.parameters('width', 'reveal_width')
  def test_bad_values(self, name):
    with self.assertRaisesRegex(ValueError, f'`{name}=0` must be positive'):
      models.ink_networks((8, 8, 3), **{name: 0})
    with self.assertRaisesRegex(ValueError, 'multiples of 2'):
      models.ink_networks((2, 2, 3))
