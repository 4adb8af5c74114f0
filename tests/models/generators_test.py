"""Generators: interpolation, transposed convolutions, shapes, statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import models, types
from bdjax.models import generators

KEY = jax.random.key(0)


def spec(size=16, channels=3):
  return types.DataSpec(
    name='toy',
    image_shape=(size, size, channels),
    num_classes=4,
    mean=(0.25,) * channels,
    std=(0.5,) * channels,
  )


def images(size=16, num=4, channels=3):
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(num, size, size, channels))
  return jnp.asarray(x, jnp.float32)


FACTORIES = {
  'encoder_decoder': lambda s: models.encoder_decoder(
    s, outputs=1, widths=(4, 6, 8)
  ),
  'strided': lambda s: models.strided_autoencoder(s, widths=(2, 3, 4, 5)),
  'skips': lambda s: models.skip_autoencoder(s, widths=(2, 3, 4, 5)),
}
NAMES = tuple(FACTORIES)


class GeneratorsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('encoder_decoder', (8, 2), (16, 3), (32, 3), (12, 2), (14, 1)),
    ('strided', (8, 3), (16, 4), (32, 4), (12, 2), (2, 1)),
    ('skips', (8, 3), (16, 3), (32, 3), (12, 2), (2, 1)),
  )
  def test_levels_and_shapes(self, name, *sizes):
    for size, levels in sizes:
      net = FACTORIES[name](spec(size))
      self.assertEqual(net.levels, levels)
      state = jax.eval_shape(net.init, KEY)
      for train in (False, True):
        maps, after = jax.eval_shape(
          lambda s, x, net=net, train=train: net.apply(s, x, train=train),
          state,
          images(size),
        )
        d = 1 if name == 'encoder_decoder' else 3
        self.assertEqual(maps.shape, (4, size, size, d))
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)

  @parameterized.parameters(*NAMES)
  def test_images_that_cannot_be_halved(self, name):
    with self.assertRaisesRegex(ValueError, 'cannot be halved'):
      FACTORIES[name](spec(15))

  @parameterized.parameters(*NAMES)
  def test_statistics_move_in_training_alone(self, name):
    net = FACTORIES[name](spec())
    state, x = net.init(KEY), images()
    maps, same = net.apply(state, x)
    chex.assert_trees_all_equal(same, state)
    trained, after = net.apply(state, x, train=True)
    chex.assert_trees_all_equal(after.params, state.params)
    for old, new in zip(
      jax.tree.leaves(state.batch_stats),
      jax.tree.leaves(after.batch_stats),
      strict=True,
    ):
      self.assertFalse(np.array_equal(old, new))
    self.assertFalse(np.array_equal(maps, trained))

  @parameterized.parameters(*NAMES)
  def test_testing_does_not_depend_on_the_batch(self, name):
    net = FACTORIES[name](spec())
    state, x = net.init(KEY), images()
    state = net.apply(state, x, train=True)[1]
    whole = net.apply(state, x)[0]
    np.testing.assert_allclose(
      net.apply(state, x[1:2])[0], whole[1:2], atol=1e-5
    )

  def test_ends(self):
    x = images()
    for name in ('strided', 'skips'):
      net = FACTORIES[name](spec())
      maps, _ = net.apply(net.init(KEY), x, train=True)
      self.assertLess(float(jnp.abs(maps).max()), 1)
    net = FACTORIES['encoder_decoder'](spec())
    maps, _ = net.apply(net.init(KEY), x, train=True)
    # Behind a norm, and nothing behind that.
    np.testing.assert_allclose(jnp.mean(maps), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(maps), 1, atol=1e-2)

  def test_published_sizes(self):
    count = lambda net: sum(
      x.size for x in jax.tree.leaves(jax.eval_shape(net.init, KEY).params)
    )
    conv = lambda k, a, b: k * k * a * b + b
    norm = lambda a: 2 * a
    step = lambda a, b: conv(3, a, b) + norm(b)
    down = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    up = [(128, 128), (128, 64), (64, 64), (64, 32), (32, 32), (32, 3)]
    want = sum(step(a, b) for a, b in [*down, (128, 128), *up])
    net = models.encoder_decoder(spec(32), outputs=3)
    self.assertEqual(count(net), want)
    down = [(3, 16), (16, 32), (32, 64), (64, 128)]
    up = [(128, 64), (64, 32), (32, 16)]
    want = sum(conv(4, a, b) + norm(b) for a, b in down + up) + conv(4, 16, 3)
    self.assertEqual(count(models.strided_autoencoder(spec(32))), want)
    blocks = [(3, 64), (64, 128), (128, 256), (256, 512)]
    blocks += [(768, 256), (384, 128), (192, 64)]
    want = sum(step(a, b) + step(b, b) for a, b in blocks)
    want += conv(1, 64, 3) + norm(3)
    self.assertEqual(count(models.skip_autoencoder(spec(32))), want)

  def test_decay_is_torchs_of_each_net(self):
    for name, place, decay in (
      ('encoder_decoder', 'down0_1_norm', 0.95),
      ('strided', 'down0_norm', 0.9),
    ):
      net = FACTORIES[name](spec())
      state = net.init(KEY)
      step = jax.jit(functools.partial(net.apply, train=True))
      _, after = step(state, images())
      _, twice = step(after, images())
      means = [s.batch_stats[place]['mean'] for s in (after, twice)]
      # From 0: (1 − decay)·m, then (1 − decay²)·m.
      np.testing.assert_allclose(
        means[1], means[0] * (1 + decay), rtol=1e-4, atol=1e-6
      )

  @parameterized.parameters(((3, 4, 5), 2), ((1, 1, 2), 3))
  def test_transposed_convolution_equals_that_of_jax(self, shape, d):
    rng = np.random.default_rng(1)
    x = rng.integers(-8, 9, (2, *shape)).astype(np.float32)
    kernel = rng.integers(-8, 9, (4, 4, shape[-1], d)).astype(np.float32)
    want = jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      ((2, 2), (2, 2)),
      lhs_dilation=(2, 2),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    got = generators.transposed_conv4(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_array_equal(got, want)

  def test_transposed_weights_start_as_wide_as_torch_draws_them(self):
    net = models.strided_autoencoder(spec(32))
    layer = net.init(KEY).params['transposed0']
    self.assertAlmostEqual(
      float(jnp.abs(layer['kernel']).max()), 48**-0.5, delta=0.01
    )
    self.assertLess(float(jnp.abs(layer['bias']).max()), 48**-0.5)

  @parameterized.parameters(
    (False, [0.0, 1.0, 3.0, 4.0]), (True, [0.0, 4 / 3, 8 / 3, 4.0])
  )
  def test_doubling_by_hand(self, is_aligned, want):
    x = jnp.asarray([0.0, 4.0])
    both = x[:, None] + 10 * x[None]
    got = generators.doubled(both[None, ..., None], is_aligned=is_aligned)
    want = np.asarray(want)
    np.testing.assert_allclose(
      got[0, ..., 0], want[:, None] + 10 * want[None], rtol=1e-6
    )

  def test_doubling_equals_that_of_jax(self):
    x = images(6)
    want = jax.image.resize(x, (4, 12, 12, 3), 'bilinear')
    np.testing.assert_allclose(generators.doubled(x), want, atol=1e-6)

  def test_images_are_normalized(self):
    plain = types.DataSpec(
      name='toy',
      image_shape=(16, 16, 3),
      num_classes=4,
      mean=(0.0,) * 3,
      std=(1.0,) * 3,
    )
    one, two = FACTORIES['strided'](spec()), FACTORIES['strided'](plain)
    state, x = one.init(KEY), images()
    np.testing.assert_allclose(
      one.apply(state, x)[0], two.apply(state, (x - 0.25) / 0.5)[0], atol=1e-5
    )


if __name__ == '__main__':
  absltest.main()
