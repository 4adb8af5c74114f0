import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models, tree, types
from bdjax.models import layers

SPEC = types.DataSpec(
  name='cifar10',
  image_shape=(32, 32, 3),
  num_classes=10,
  mean=(0.5,) * 3,
  std=(0.25,) * 3,
)


class VggTest(parameterized.TestCase):
  def test_number_of_weights(self):
    # Torchvision's 143,678,248 for 1000 classes less 990 rows of the head.
    model = models.make('vgg19_bn', SPEC)
    state = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(tree.count(state.params), 143_678_248 - 990 * 4097)

  def test_convolutions_are_torchvisions(self):
    info = models.make('vgg19_bn', SPEC, width=2).info
    places = [0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49]
    self.assertEqual(info.conv_taps, tuple(f'features.{i}' for i in places))
    self.assertEqual(
      [group.channels for group in info.prune_graph],
      [2] * 2 + [4] * 2 + [8] * 4 + [16] * 8,
    )

  def test_five_pools(self):
    model = models.make('vgg19_bn', SPEC, width=2)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    state = jax.eval_shape(model.init, jax.random.key(0))
    shapes = jax.eval_shape(model.features, state, images)
    sides = [shapes[f'features.{i}'].shape[1] for i in (3, 10, 23, 36, 49)]
    self.assertEqual(sides, [32, 16, 8, 4, 2])
    self.assertEqual(shapes['penultimate_map'].shape, (1, 1, 1, 16))
    self.assertEqual(shapes['penultimate'].shape, (1, 128))

  def test_small_images_are_refused(self):
    small = types.DataSpec(
      name='toy', image_shape=(8, 8, 3), num_classes=4, mean=(0,), std=(1,)
    )
    with self.assertRaisesRegex(ValueError, "use 'preactresnet18' or 'tiny'"):
      models.make('vgg19_bn', small)

  def test_initial_weights(self):
    params = (
      models.make('vgg19_bn', SPEC, width=4).init(jax.random.key(0)).params
    )
    std = params['features_49']['kernel'].std()
    np.testing.assert_allclose(std, (2 / (9 * 32)) ** 0.5, rtol=0.05)
    np.testing.assert_allclose(
      params['classifier_3']['kernel'].std(), 0.01, rtol=0.05
    )
    for module in ('features_0', 'classifier_0', 'head'):
      np.testing.assert_array_equal(params[module]['bias'], 0)

  def test_dropout_needs_a_key_in_training_only(self):
    model = models.make('vgg19_bn', SPEC, width=1, dropout=0.5)
    state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    with self.assertRaisesRegex(ValueError, '`key=`'):
      jax.eval_shape(lambda s, x: model.apply(s, x, train=True), state, images)
    jax.eval_shape(model.apply, state, images)

  def test_dropout_depends_on_the_key(self):
    model = models.make('vgg19_bn', SPEC, width=1, dropout=0.5)
    state = model.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3))

    @jax.jit
    def hidden(key):
      return model.features(state, images, train=True, key=key)['penultimate']

    first, again, other = (hidden(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertGreater(float(jnp.mean(first == 0)), 0.5)
    self.assertGreater(float(jnp.abs(first - other).max()), 0)


class PoolTest(parameterized.TestCase):
  def test_one_pixel_is_repeated(self):
    x = jnp.arange(3.0).reshape(1, 1, 1, 3)
    out = layers.adaptive_average_pool(x, 7)
    np.testing.assert_array_equal(out, jnp.broadcast_to(x, (1, 7, 7, 3)))

  def test_two_rows_overlap_in_the_middle_bin(self):
    x = jnp.asarray([1.0, 3.0]).reshape(1, 2, 1, 1)
    out = layers.adaptive_average_pool(x, 7)[0, :, 0, 0]
    np.testing.assert_allclose(out, [1, 1, 1, 2, 3, 3, 3], rtol=1e-6)

  def test_uneven_bins(self):
    # Ten rows into three bins: 0–3, 3–6 and 6–9.
    x = jnp.arange(10.0).reshape(1, 10, 1, 1)
    out = layers.adaptive_average_pool(x, 3)[0, :, 0, 0]
    np.testing.assert_allclose(out, [1.5, 4.5, 7.5], rtol=1e-6)

  def test_same_size_is_the_identity(self):
    x = jax.random.normal(jax.random.key(0), (2, 7, 7, 3))
    out = layers.adaptive_average_pool(x, 7)
    np.testing.assert_allclose(out, x, rtol=1e-6, atol=1e-6)

  def test_max_pool_against_numpy(self):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    out = layers.max_pool(jnp.asarray(x))
    expected = np.stack(
      [
        [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in (0, 1)]
        for i in (0, 1)
      ]
    )
    np.testing.assert_array_equal(out, expected.transpose(2, 0, 1, 3))
