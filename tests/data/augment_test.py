import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from scipy import ndimage

from bdjax import data, keys

CIFAR = data.spec('cifar10')
crop_flip = jax.jit(data.crop_flip)


def some_images(b=5, side=8):
  images = np.random.default_rng(0).uniform(0.1, 1, (b, side, side, 3))
  return jnp.asarray(images, jnp.float32)


def naive(image, dy, dx, mirror, pad=4):
  """Pad, cut, flip, as an image library does it."""
  h, w, _ = image.shape
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  cut = padded[pad + dy : pad + dy + h, pad + dx : pad + dx + w]
  return cut[:, ::-1] if mirror else cut


class CropFlipTest(parameterized.TestCase):
  def test_zero_shift_is_the_identity(self):
    images = some_images()
    out = crop_flip(images, jnp.zeros((5, 2), jnp.int32), jnp.zeros(5, bool))
    np.testing.assert_array_equal(out, images)

  def test_flip_is_an_involution(self):
    images, zero = some_images(), jnp.zeros((5, 2), jnp.int32)
    once = crop_flip(images, zero, jnp.ones(5, bool))
    np.testing.assert_array_equal(once, images[:, :, ::-1])
    np.testing.assert_array_equal(
      crop_flip(once, zero, jnp.ones(5, bool)), images
    )

  @parameterized.parameters(False, True)
  def test_every_shift_equals_pad_and_cut(self, mirror):
    image = np.asarray(some_images(1)[0])
    shifts = np.stack(np.mgrid[-4:5, -4:5], -1).reshape(-1, 2)
    out = crop_flip(
      jnp.asarray(np.tile(image, (81, 1, 1, 1))),
      jnp.asarray(shifts),
      jnp.full(81, mirror),
    )
    want = np.stack([naive(image, dy, dx, mirror) for dy, dx in shifts])
    np.testing.assert_array_equal(out, want)

  def test_a_white_image_gets_black_borders(self):
    shift = jnp.array([[3, 0], [0, -2]])
    out = crop_flip(jnp.ones((2, 8, 8, 3)), shift, jnp.zeros(2, bool))
    want = np.ones((2, 8, 8, 3))
    want[0, 5:], want[1, :, :2] = 0, 0
    np.testing.assert_array_equal(out, want)


class AugmentFnTest(parameterized.TestCase):
  def test_an_image_depends_on_its_own_key_alone(self):
    images, key = some_images(), jax.random.key(0)
    augment = jax.jit(data.augment_fn(CIFAR))
    whole = augment(images, keys.per_example(key, np.arange(5)))
    part = augment(images[3:], keys.per_example(key, np.array([3, 4])))
    np.testing.assert_array_equal(whole[3:], part)

  def test_jit_and_scan_change_nothing(self):
    images = some_images()
    augment = data.augment_fn(CIFAR)
    drawn = jax.random.split(jax.random.key(1), 5)
    eager = augment(images, drawn)
    np.testing.assert_array_equal(jax.jit(augment)(images, drawn), eager)
    _, scanned = jax.jit(
      lambda: jax.lax.scan(lambda c, k: (c, augment(images, k)), 0, drawn[None])
    )()
    np.testing.assert_array_equal(scanned[0], eager)

  def test_offsets_and_flips_are_uniform(self):
    # One bright pixel left of the middle tells where its image went.
    images = np.zeros((4000, 16, 16, 1), np.float32)
    images[:, 8, 5] = 1
    spec = dataclasses.replace(CIFAR, crop_padding=2)
    drawn = jax.random.split(jax.random.key(2), 4000)
    out = np.asarray(jax.jit(data.augment_fn(spec))(images, drawn))
    _, rows, cols, _ = np.nonzero(out)
    self.assertLen(rows, 4000)
    mirrored = cols > 7
    offsets = np.where(mirrored, 15 - cols, cols) - 5
    counts, _, _ = np.histogram2d(
      rows - 8, offsets, bins=5, range=[[-2.5, 2.5]] * 2
    )
    self.assertEqual(counts.sum(), 4000)
    # 25 cells of 160 expected, deviation 12.4.
    np.testing.assert_allclose(counts, 160, atol=60)
    self.assertAlmostEqual(mirrored.mean(), 0.5, delta=0.04)

  def test_no_recipe_is_the_identity(self):
    spec = dataclasses.replace(CIFAR, crop_padding=0, flip=False)
    images = some_images()
    drawn = jax.random.split(jax.random.key(0), 5)
    self.assertIs(data.augment_fn(spec)(images, drawn), images)

  def test_only_data_sets_that_say_so_are_flipped(self):
    images = np.zeros((200, 16, 16, 1), np.float32)
    images[:, :, :4] = 1
    drawn = jax.random.split(jax.random.key(2), 200)
    for flip, want in ((True, True), (False, False)):
      spec = dataclasses.replace(CIFAR, crop_padding=1, flip=flip)
      out = jax.jit(data.augment_fn(spec))(images, drawn)
      self.assertEqual(bool(np.any(np.asarray(out)[:, :, 12:] > 0)), want)

  def test_flip_without_crop(self):
    spec = dataclasses.replace(CIFAR, crop_padding=0)
    images = some_images(20)
    drawn = jax.random.split(jax.random.key(0), 20)
    out = np.asarray(jax.jit(data.augment_fn(spec))(images, drawn))
    images = np.asarray(images)
    same = np.all(out == images, (1, 2, 3))
    turned = np.all(out == images[:, :, ::-1], (1, 2, 3))
    self.assertTrue(np.all(same ^ turned))
    self.assertTrue(0 < same.sum() < 20)


class BilinearTest(parameterized.TestCase):
  def test_hand_computed_points(self):
    image = jnp.arange(4.0).reshape(1, 2, 2, 1)  # 0 1 / 2 3
    rows = jnp.asarray([[[0.0, 0.5, 1.0, -0.5, 1.0]]])
    columns = jnp.asarray([[[0.25, 0.5, 1.0, 0.0, 1.5]]])
    got = data.bilinear(image, rows, columns, 8.0)[0, 0, :, 0]
    np.testing.assert_allclose(got, [0.25, 1.5, 3.0, 4.0, 5.5])

  def test_whole_coordinates_give_the_pixels(self):
    images = some_images(2)
    rows, columns = np.mgrid[:8, :8].astype(np.float32)
    tile = lambda x: jnp.asarray(np.stack([x, x]))
    got = data.bilinear(images, tile(columns), tile(rows))
    np.testing.assert_array_equal(got, jnp.swapaxes(images, 1, 2))

  def test_equals_a_library(self):
    images = some_images(1)
    points = np.random.default_rng(1).uniform(-2, 10, (2, 1, 5, 7))
    rows, columns = jnp.asarray(points, jnp.float32)
    got = data.bilinear(images, rows, columns, jnp.asarray([0.1, 0.2, 0.3]))
    for channel, fill in enumerate((0.1, 0.2, 0.3)):
      want = ndimage.map_coordinates(
        images[0, ..., channel],
        [rows[0], columns[0]],
        order=1,
        mode='grid-constant',
        cval=fill,
      )
      np.testing.assert_allclose(got[0, ..., channel], want, atol=1e-6)


class RotateTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_zero_is_the_identity(self, nearest):
    images = some_images(3)
    got = data.rotate(images, jnp.zeros(3), 0.5, nearest=nearest)
    np.testing.assert_array_equal(got, images)

  @parameterized.parameters(False, True)
  def test_quarter_turns(self, nearest):
    images = some_images(2)
    got = data.rotate(images, jnp.asarray([90.0, -90.0]), nearest=nearest)
    turned = [np.rot90(images[0], 1), np.rot90(images[1], -1)]
    flip = [np.rot90(images[0], -1), np.rot90(images[1], 1)]
    either = min(np.abs(got - np.stack(x)).max() for x in (turned, flip))
    # A corner that lies a rounding error outside gets as much of the fill.
    self.assertLess(either, 1e-5)

  def test_corners_get_the_fill(self):
    got = data.rotate(jnp.ones((1, 9, 9, 2)), jnp.asarray([45.0]), 0.25)
    np.testing.assert_array_equal(got[0, 0, 0], [0.25, 0.25])
    np.testing.assert_allclose(got[0, 4, 4], [1, 1])


class PostTensorTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.keys = jax.random.split(jax.random.key(0), 6)

  def augment(self, images, keys=None, spec=CIFAR, **kwargs):
    fn = data.post_tensor_fn(spec, **kwargs)
    return np.asarray(fn(images, self.keys if keys is None else keys))

  def test_fill_is_zero_where_the_model_sees_it(self):
    white = jnp.ones((6, 32, 32, 3))
    got = self.augment(white, crop_rate=1.0, rotation_rate=0.0)
    mean, std = np.float32(CIFAR.mean), np.float32(CIFAR.std)
    normalized = (got - mean) / std
    empty = np.all(got != 1, axis=-1)
    self.assertTrue(0 < empty.mean() < 0.4)
    np.testing.assert_array_equal(normalized[empty], 0)

  def test_nothing_drawn_is_the_identity(self):
    spec = dataclasses.replace(CIFAR, flip=False)
    images = some_images(6, 32)
    got = self.augment(images, spec=spec, crop_rate=0.0, rotation_rate=0.0)
    np.testing.assert_array_equal(got, images)

  @parameterized.parameters((8, 1), (16, 2), (32, 5), (64, 5))
  def test_padding_shrinks_with_small_images(self, side, want):
    spec = dataclasses.replace(
      CIFAR, image_shape=(side, side, 3), flip=False, mean=(0.0,) * 3
    )
    keys = jax.random.split(jax.random.key(1), 80)
    got = self.augment(
      jnp.ones((80, side, side, 3)),
      keys,
      spec,
      crop_rate=1.0,
      rotation_rate=0.0,
    )
    lost = (got[..., 0] == 0).all(axis=2).sum(axis=1)
    self.assertEqual(lost.max(), want)

  def test_branches_are_drawn_once_for_a_batch(self):
    spec = dataclasses.replace(CIFAR, flip=False)
    fn = jax.jit(data.post_tensor_fn(spec, rotation_rate=0.0))
    images = some_images(6, 32)
    changed = []
    for i in range(60):
      keys = jax.random.split(jax.random.key(i), 6)
      got = np.asarray(fn(images, keys))
      changed.append(np.any(got != np.asarray(images), axis=(1, 2, 3)))
    changed = np.asarray(changed)
    cropped = changed.any(axis=1)
    # An image stays where it is with probability 1/121 even then.
    self.assertGreater(changed[cropped].mean(), 0.95)
    self.assertBetween(cropped.mean(), 0.65, 0.95)

  @parameterized.parameters(False, True)
  def test_images_go_their_own_ways_unless_shared(self, shared):
    same = jnp.tile(some_images(1, 32), (6, 1, 1, 1))
    got = self.augment(same, shared=shared, crop_rate=1.0, rotation_rate=1.0)
    self.assertEqual(len(np.unique(got, axis=0)), 1 if shared else 6)

  def test_shared_takes_the_nearest_pixels(self):
    images = some_images(6, 32)
    got = self.augment(images, shared=True, crop_rate=0.0, rotation_rate=1.0)
    known = np.float32([*np.unique(images), *CIFAR.mean])
    self.assertTrue(np.isin(got, known).all())
    self.assertGreater(np.abs(got - np.asarray(images)).max(), 0)

  @parameterized.parameters(
    (dict(crop=-1), '`crop=-1` must not be negative'),
    (dict(rotation=-1.0), '`rotation=-1.0` must not be negative'),
    (dict(crop_rate=1.5), '`crop_rate=1.5` is not in'),
    (dict(rotation_rate=-0.5), '`rotation_rate=-0.5` is not in'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      data.post_tensor_fn(CIFAR, **values)


class ToFloatTest(parameterized.TestCase):
  def test_bytes_come_back(self):
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    out = data.to_float(images)
    self.assertEqual(out.dtype, jnp.float32)
    self.assertEqual((float(out.min()), float(out.max())), (0.0, 1.0))
    np.testing.assert_array_equal(np.round(255 * np.asarray(out)), images)
    np.testing.assert_array_equal(jax.jit(data.to_float)(images), out)

  def test_floats_are_not_divided_again(self):
    with self.assertRaisesRegex(TypeError, 'need no conversion'):
      data.to_float(jnp.ones((1, 8, 8, 3)))
