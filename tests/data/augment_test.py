import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

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
