"""BppAttack: the released levels, negatives, slots, dithering."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, types
from tests.eval import linear
from tests.reference import golden

KEY = jax.random.key(0)
LEVELS = [0, 36, 72, 109, 145, 182, 218, 255]


def reference(name):
  return golden.arrays('triggers_in_loop')[f'bpp_{name}']


def images_u8():
  return golden.arrays('triggers_static')['images_u8']


def spec(size=32):
  return linear.spec(shape=(size, size, 3), num_classes=10)


def setup(size=32, train=None, **kwargs):
  attack = attacks.bpp(spec(size), attacks.BppHParams(**kwargs))
  if train is None:
    train = np.random.default_rng(1).integers(0, 256, (20, size, size, 3))
    train = train.astype(np.uint8)
  return attack, attack.init(KEY, train, np.arange(len(train)) % 10)


def bytes_of(images):
  return np.round(255 * np.asarray(images))


def stamp(images, **kwargs):
  attack, state = setup(images.shape[1], **kwargs)
  return bytes_of(
    attack.stamp(state, jnp.asarray(images) / 255, KEY, np.arange(len(images)))
  )


def batch(size, num):
  images = np.random.default_rng(0).integers(0, 256, (num, size, size, 3))
  return {
    'image': jnp.asarray(images, jnp.float32) / 255,
    'label': jnp.arange(num) % 10,
    'index': jnp.arange(num),
    'mask': jnp.ones(num, bool),
  }


def noise(levels):
  """What 8-bit quantization to 8 levels adds to grey levels."""
  step = np.round(np.float64(levels) / 255 * 7)
  return np.floor(step / 7 * 255 + 1e-6) - levels


class BppTest(parameterized.TestCase):
  def test_equals_the_release(self):
    got = stamp(images_u8())
    np.testing.assert_array_equal(got, reference('quantised_uint8_released'))
    self.assertContainsSubset(np.unique(got), LEVELS)

  def test_dithering_equals_the_release(self):
    got = stamp(images_u8(), dithering=True)
    np.testing.assert_array_equal(got, reference('dithered_uint8_released'))

  def test_training_images_keep_their_fractions(self):
    attack, state = setup()
    images = jnp.asarray(np.tile(images_u8(), (3, 1, 1, 1)))[:10] / 255
    got = attack.poison(state, batch(32, 10) | {'image': images}, KEY)
    np.testing.assert_allclose(
      255 * got['image'][0], reference('quantised_0_255')[0], atol=1e-4
    )

  def test_cross_images_equal_the_reference(self):
    others = np.roll(images_u8(), -1, axis=0)
    for i in range(4):
      attack, state = setup(train=others[i : i + 1])
      images = jnp.asarray(images_u8()[i : i + 1]) / 255
      got = bytes_of(attack.cross(state, images, KEY, np.arange(1)))
      np.testing.assert_array_equal(got[0], reference('negative_0_255')[i])

  @parameterized.parameters(2, 4, 8)
  def test_few_levels_and_twice_is_once(self, num):
    images = np.asarray(bytes_of(batch(8, 4)['image']), np.uint8)
    once = stamp(images, squeeze_num=num)
    self.assertLessEqual(len(np.unique(once)), num)
    twice = stamp(once.astype(np.uint8), squeeze_num=num)
    np.testing.assert_array_equal(twice, once)

  @parameterized.parameters((128, (12, 12, 104)), (40, (4, 4, 32)))
  def test_slots(self, num, want):
    attack, state = setup(8)
    clean = batch(8, num)
    got = attack.poison(state, clean, KEY)
    first, second, rest = want
    np.testing.assert_array_equal(
      got['kind'],
      [types.POISONED] * first + [types.COVER] * second + [types.CLEAN] * rest,
    )
    for field in ('image', 'label'):
      np.testing.assert_array_equal(
        got[field][first + second :], clean[field][first + second :]
      )
    np.testing.assert_array_equal(got['label'][:first], 0)
    np.testing.assert_array_equal(got['label'][first:], clean['label'][first:])

  def test_all_to_all_shifts_the_labels_of_poison_alone(self):
    attack, state = setup(8, label_mode='all2all')
    got = attack.poison(state, batch(8, 40), KEY)
    want = np.arange(40) % 10
    want[:4] += 1
    np.testing.assert_array_equal(got['label'], want)

  def test_covers_carry_the_noise_of_another_image_of_the_batch(self):
    attack, state = setup(8)
    clean = batch(8, 40)
    levels = bytes_of(clean['image'])
    partners = set()
    for seed in range(6):
      got = attack.poison(state, clean, jax.random.key(seed))
      covers = bytes_of(got['image'])[4:8]
      for slot, cover in enumerate(covers, start=4):
        known = np.clip(levels[slot][None] + noise(levels), 0, 255)
        found = np.flatnonzero(np.all(known == cover, axis=(1, 2, 3)))
        self.assertLen(found, 1)
        self.assertNotEqual(found[0], slot)
        partners.add(int(found[0]))
    self.assertGreater(len(partners), 12)  # of 24 draws

  def test_cross_images_carry_the_noise_of_training_images(self):
    attack, state = setup(8, num_residuals=5)
    self.assertEqual(state.trigger['others'].shape, (5, 8, 8, 3))
    clean = batch(8, 30)
    levels = bytes_of(clean['image'])
    got = bytes_of(attack.cross(state, clean['image'], KEY, clean['index']))
    partners = set()
    for image, crossed in zip(levels, got, strict=True):
      known = np.clip(image[None] + noise(state.trigger['others']), 0, 255)
      found = np.flatnonzero(np.all(known == crossed, axis=(1, 2, 3)))
      self.assertLen(found, 1)
      partners.add(int(found[0]))
    self.assertEqual(partners, set(range(5)))

  def test_small_training_sets_are_kept_as_a_whole(self):
    train = np.arange(3 * 192, dtype=np.uint32).reshape(3, 8, 8, 3)
    train = (train % 256).astype(np.uint8)
    _, state = setup(8, train)
    np.testing.assert_array_equal(
      np.unique(state.trigger['others'], axis=0), np.unique(train, axis=0)
    )

  def test_covers_come_also_where_poison_is_rare(self):
    attack, state = setup(8, poison_ratio=0.001)
    kinds = [
      np.asarray(attack.poison(state, batch(8, 20), jax.random.key(i))['kind'])
      for i in range(8)
    ]
    np.testing.assert_array_equal(np.stack(kinds)[:, 1:3], types.COVER)
    self.assertLess(np.mean(np.stack(kinds)[:, 0] == types.POISONED), 0.5)

  @parameterized.parameters(False, True)
  def test_stamped_images_are_on_the_8_bit_grid(self, dithering):
    attack, state = setup(8, dithering=dithering)
    images = batch(8, 4)['image']
    for fn in (attack.stamp, attack.cross):
      got = 255 * np.asarray(fn(state, images, KEY, np.arange(4)))
      np.testing.assert_allclose(got, np.round(got), atol=1e-4)
      self.assertBetween(got.min(), 0, 255)
      self.assertBetween(got.max(), 0, 255)

  @parameterized.parameters(
    (dict(squeeze_num=1), '`squeeze_num=1` leaves no image'),
    (dict(neg_ratio=-0.1), '`neg_ratio=-0.1` is not in'),
    (dict(neg_ratio=0.95), 'covers on 0.95 of a batch exceed it'),
    (dict(num_residuals=0), '`num_residuals=0` must be positive'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(8, **values)

  def test_assets_are_refused(self):
    with self.assertRaisesRegex(KeyError, "Unknown asset 'picture'"):
      attacks.bpp(spec(), None, {'picture': np.zeros(4)})


if __name__ == '__main__':
  absltest.main()
