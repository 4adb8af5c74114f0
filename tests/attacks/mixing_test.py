"""Slots of batches: how many, which, and what becomes of them."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, types
from bdjax.attacks import mixing
from tests.eval import linear

KEY = jax.random.key(0)
SPEC = linear.spec(shape=(4, 4, 3), num_classes=4)


def batch(size):
  images = np.random.default_rng(0).integers(0, 256, (size, 4, 4, 3))
  return {
    'image': jnp.asarray(images, jnp.float32) / 255,
    'label': jnp.arange(size) % 4,
    'index': jnp.arange(size) + 100,
    'mask': jnp.ones(size, bool),
  }


def mix(size, plan, key=KEY):
  clean = batch(size)
  return clean, mixing.mix(
    clean,
    plan,
    key,
    poisoned=lambda rows: jnp.zeros_like(clean['image'][rows]),
    cover=lambda rows: 1 - clean['image'][rows],
    relabel=lambda labels: (labels + 1) % 4,
  )


def views(**kwargs):
  white = lambda params, images, key, index: jnp.ones_like(images)
  of = lambda params, batch, rows, key: jnp.ones_like(batch['image'][rows])
  return mixing.Views(
    **dict(
      init=lambda key, images: {},
      poisoned=of,
      cover=of,
      stamp=white,
      cross=lambda params, images, key, index: 0.5 * images,
    )
    | kwargs
  )


class SlotsTest(parameterized.TestCase):
  @parameterized.parameters(
    (128, 0.1, dict(per_poisoned=2.0), (12, 24)),  # WaNet
    (128, 0.1, dict(per_poisoned=1.0), (12, 12)),  # Input-aware
    (128, 0.1, dict(cover_ratio=0.1), (12, 12)),  # Bpp
    (128, 0.05, dict(per_poisoned=2.0), (6, 12)),
    (128, 0.01, dict(cover_ratio=0.1), (1, 12)),
    (80, 0.1, dict(per_poisoned=2.0), (8, 16)),
    (128, 0.1, {}, (12, 0)),
  )
  def test_counts_of_the_benchmark(self, size, ratio, covers, want):
    plan = mixing.slots(size, ratio, **covers)
    self.assertEqual((plan.num_poisoned, plan.num_cover), want)
    self.assertEqual(plan.rate, 1.0)
    kind = np.asarray(mixing.kinds(plan, size, KEY))
    first, second = want
    codes = [types.POISONED] * first + [types.COVER] * second
    codes += [types.CLEAN] * (size - first - second)
    np.testing.assert_array_equal(kind, codes)

  @parameterized.parameters((0.005, 0.64), (0.001, 0.128))
  def test_less_than_one_image_is_one_at_times(self, ratio, want):
    plan = mixing.slots(128, ratio, per_poisoned=2.0)
    self.assertEqual((plan.num_poisoned, plan.num_cover), (1, 2))
    self.assertAlmostEqual(plan.rate, want)
    draw = jax.vmap(lambda key: mixing.kinds(plan, 128, key))
    kinds = np.asarray(draw(jax.random.split(KEY, 2000)))
    used = kinds[:, 0] == types.POISONED
    # Three standard deviations of 2000 draws.
    self.assertAlmostEqual(used.mean(), want, delta=0.035)
    for slot in (1, 2):
      np.testing.assert_array_equal(kinds[:, slot] == types.COVER, used)
    np.testing.assert_array_equal(kinds[:, 3:], types.CLEAN)

  def test_covers_of_their_own_come_without_poison(self):
    plan = mixing.slots(32, 0.001, cover_ratio=0.1)
    draw = jax.vmap(lambda key: mixing.kinds(plan, 32, key))
    kinds = np.asarray(draw(jax.random.split(KEY, 200)))
    self.assertLess((kinds[:, 0] == types.POISONED).mean(), 0.2)
    np.testing.assert_array_equal(kinds[:, 1:4], types.COVER)

  def test_covers_find_room_or_are_left_out(self):
    plan = mixing.slots(2, 0.1, per_poisoned=2.0)
    self.assertEqual((plan.num_poisoned, plan.num_cover), (1, 1))


class MixTest(parameterized.TestCase):
  def test_each_slot_gets_what_is_its(self):
    clean, got = mix(10, mixing.slots(10, 0.2, per_poisoned=2.0))
    np.testing.assert_array_equal(got['image'][:2], 0)
    np.testing.assert_array_equal(got['image'][2:6], 1 - clean['image'][2:6])
    np.testing.assert_array_equal(got['image'][6:], clean['image'][6:])
    np.testing.assert_array_equal(got['label'][:2], clean['label'][:2] + 1)
    np.testing.assert_array_equal(got['label'][2:], clean['label'][2:])
    for field in ('index', 'mask'):
      np.testing.assert_array_equal(got[field], clean[field])

  def test_a_slot_not_drawn_is_clean_in_image_and_label(self):
    plan = mixing.slots(8, 0.05, per_poisoned=1.0)
    seen = set()
    for seed in range(8):
      clean, got = mix(8, plan, jax.random.key(seed))
      used = int(got['kind'][0]) == types.POISONED
      seen.add(used)
      if not used:
        np.testing.assert_array_equal(got['image'], clean['image'])
        np.testing.assert_array_equal(got['label'], clean['label'])
      else:
        np.testing.assert_array_equal(got['image'][0], 0)
        self.assertEqual(int(got['label'][0]), 1)
    self.assertEqual(seen, {False, True})

  def test_no_covers(self):
    clean, got = mix(10, mixing.slots(10, 0.2))
    np.testing.assert_array_equal(got['image'][2:], clean['image'][2:])


class FromViewsTest(parameterized.TestCase):
  def make(self, made=None, **kwargs):
    hp = mixing.MixHParams(**kwargs)
    return mixing.from_views('toy', SPEC, hp, made or views(), per_poisoned=2.0)

  def state(self, attack):
    return attack.init(KEY, np.zeros((9, 4, 4, 3), np.uint8), np.arange(9) % 4)

  def test_no_subset_is_fixed(self):
    attack = self.make()
    self.assertEqual(set(np.unique(self.state(attack).kind)), {types.CLEAN})
    self.assertFalse(attack.info.fixed_subset)
    self.assertAlmostEqual(attack.info.cover_ratio, 0.2)
    self.assertEqual(attack.info.poison_ratio, 0.1)

  @parameterized.parameters(
    ('all2one', [3, 3, 2, 3]), ('all2all', [1, 2, 2, 3])
  )
  def test_label_modes(self, mode, want):
    attack = self.make(label_mode=mode, target_label=3, poison_ratio=0.25)
    got = attack.poison(self.state(attack), batch(8), KEY)
    np.testing.assert_array_equal(got['label'][:4], want)

  @parameterized.parameters(
    ('trunc', [36, 255, 0]), ('round', [36, 255, 0]), ('none', None)
  )
  def test_triggered_test_images_are_stored(self, mode, want):
    levels = jnp.asarray([36.43, 255.0, 0.2]) / 255
    if mode == 'round':
      levels = jnp.asarray([35.6, 254.7, 0.2]) / 255
    image = jnp.broadcast_to(levels[None, None], (4, 4, 3))
    stamp = lambda params, images, key, index: jnp.stack([image] * len(images))
    attack = self.make(views(stamp=stamp, cross=stamp), quantize_mode=mode)
    for fn in (attack.stamp, attack.cross):
      got = fn(self.state(attack), batch(2)['image'], KEY, np.arange(2))
      if want is None:
        np.testing.assert_array_equal(got[0], image)
      else:
        np.testing.assert_allclose(255 * got[1, 0, 0], want, atol=1e-4)

  def test_the_augmentation_is_the_attackers(self):
    # All white on a black mean: whatever is black has been moved or turned.
    attack = self.make(random_crop=32, random_rotation=0.0)
    images = jnp.ones((64, 4, 4, 3))
    got = attack.augment(images, jax.random.split(jax.random.key(1), 64))
    self.assertGreater(np.mean(np.asarray(got) == 0), 0.3)
    still = self.make(random_crop=0, random_rotation=0.0).augment
    np.testing.assert_array_equal(still(images, jax.random.split(KEY, 64)), 1)

  def test_wrong_images_are_named(self):
    attack = self.make()
    with self.assertRaisesRegex(ValueError, 'made for images of shape'):
      attack.stamp(
        self.state(attack), jnp.ones((2, 5, 4, 3)), KEY, np.arange(2)
      )
    with self.assertRaisesRegex(TypeError, 'uint8'):
      attack.init(KEY, np.zeros((9, 4, 4, 3)), np.arange(9))

  @parameterized.parameters(
    (dict(poison_ratio=10.0), 'use 0.1 for 10 %'),
    (dict(poison_ratio=0.4), '`poison_ratio=0.4` and covers on 0.8'),
    (dict(quantize_mode='floor'), "`quantize_mode='floor'` is not allowed"),
    (dict(label_mode='all2two'), "Did you mean 'all2one'"),
    (dict(target_label=4), '`target_label=4` is out of range'),
    (dict(random_crop=-1), 'must not be negative'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      self.make(**values)

  def test_shared_hparams_are_public(self):
    self.assertIs(attacks.MixHParams, mixing.MixHParams)


if __name__ == '__main__':
  absltest.main()
