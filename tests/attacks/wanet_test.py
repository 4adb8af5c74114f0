"""WaNet: the released images, slots, covers, the grid, small strengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, types
from bdjax.attacks.triggers import warp
from tests.eval import linear
from tests.reference import golden

KEY = jax.random.key(0)


def reference(name):
  return golden.arrays('triggers_in_loop')[f'wanet_{name}']


def images_u8():
  return golden.arrays('triggers_static')['images_u8']


def spec(size=32):
  return linear.spec(shape=(size, size, 3), num_classes=10)


def setup(size=32, key=KEY, **kwargs):
  attack = attacks.wanet(spec(size), attacks.WaNetHParams(**kwargs))
  train = np.zeros((20, size, size, 3), np.uint8)
  return attack, attack.init(key, train, np.arange(20) % 10)


def batch(size, num):
  images = np.random.default_rng(0).integers(0, 256, (num, size, size, 3))
  return {
    'image': jnp.asarray(images, jnp.float32) / 255,
    'label': jnp.arange(num) % 10,
    'index': jnp.arange(num),
    'mask': jnp.ones(num, bool),
  }


class WaNetTest(parameterized.TestCase):
  def test_equals_the_release(self):
    attack, state = setup()
    state = dataclasses.replace(
      state, trigger={'grid': jnp.asarray(reference('grid')[0])}
    )
    images = jnp.asarray(images_u8()) / 255
    got = attack.stamp(state, images, KEY, np.arange(4))
    gap = np.round(255 * np.asarray(got)) - reference('bd_uint8_released')
    self.assertLessEqual(np.abs(gap).max(), 1)
    # The release truncates float32 noise below whole levels.
    self.assertLess(np.mean(gap != 0), 0.02)
    floats = attacks.wanet(spec(), attacks.WaNetHParams(quantize_mode='none'))
    got = floats.stamp(state, images, KEY, np.arange(4))
    np.testing.assert_allclose(got, reference('bd_pixel01'), atol=1e-5)

  def test_strength_zero_is_the_identity(self):
    attack, state = setup(strength=0.0)
    images = jnp.asarray(images_u8()) / 255
    got = attack.stamp(state, images, KEY, np.arange(4))
    np.testing.assert_array_equal(np.round(255 * np.asarray(got)), images_u8())
    np.testing.assert_array_equal(got, images)

  @parameterized.parameters((128, (12, 24, 92)), (40, (4, 8, 28)))
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
    np.testing.assert_array_equal(
      got['label'][first : first + second],
      clean['label'][first : first + second],
    )
    np.testing.assert_array_equal(got['label'][:first], 0)
    want = warp.warp(clean['image'][:first], state.trigger['grid'][None])
    np.testing.assert_array_equal(got['image'][:first], want)

  def test_all_to_all_shifts_the_labels_of_poison_alone(self):
    attack, state = setup(8, label_mode='all2all')
    got = attack.poison(state, batch(8, 40), KEY)
    want = np.arange(40) % 10
    want[:4] += 1
    np.testing.assert_array_equal(got['label'], want)
    self.assertIsNone(attack.info.target_label)

  def test_covers_are_displaced_by_noise_of_their_own(self):
    attack, state = setup(8, quantize_mode='none')
    same = jnp.tile(batch(8, 1)['image'], (40, 1, 1, 1))
    got = attack.poison(state, batch(8, 40) | {'image': same}, KEY)['image']
    self.assertLen(np.unique(got[:4], axis=0), 1)
    self.assertLen(np.unique(got[4:12], axis=0), 8)
    crossed = attack.cross(state, same[:6], KEY, np.arange(6))
    self.assertLen(np.unique(crossed, axis=0), 6)
    # Half a pixel at most: nothing further than two pixels away is read.
    spot = jnp.zeros((1, 8, 8, 3)).at[0, 4, 4].set(1.0)
    spread = attack.cross(state, spot, KEY, np.arange(1))
    rows, columns = np.nonzero(np.asarray(spread[0, ..., 0]) > 1e-3)
    self.assertLessEqual(max(np.abs(rows - 4).max(), 0), 2)
    self.assertLessEqual(max(np.abs(columns - 4).max(), 0), 2)

  @parameterized.parameters(0.5, 8.0)
  def test_every_sampling_point_lies_inside(self, strength):
    _, state = setup(16, strength=strength)
    self.assertLessEqual(float(jnp.abs(state.trigger['grid']).max()), 1)
    # Hence white images stay white: no padding is ever read.
    attack, _ = setup(16, strength=strength)
    white = jnp.ones((3, 16, 16, 3))
    for fn in (attack.stamp, attack.cross):
      got = fn(state, white, KEY, np.arange(3))
      np.testing.assert_allclose(got, 1, atol=1e-6)

  def test_stamped_images_are_on_the_8_bit_grid(self):
    attack, state = setup(16)
    images = batch(16, 4)['image']
    for fn in (attack.stamp, attack.cross):
      got = 255 * np.asarray(fn(state, images, KEY, np.arange(4)))
      np.testing.assert_allclose(got, np.round(got), atol=1e-4)
      self.assertBetween(got.min(), 0, 255)
      self.assertBetween(got.max(), 0, 255)

  def test_one_field_for_all_images_another_for_another_key(self):
    attack, state = setup(8)
    images = batch(8, 4)['image']
    one = attack.stamp(state, images, KEY, np.arange(4))
    two = attack.stamp(state, images, jax.random.key(7), np.arange(4) + 9)
    np.testing.assert_array_equal(one, two)
    _, other = setup(8, key=jax.random.key(1))
    self.assertGreater(
      np.abs(attack.stamp(other, images, KEY, np.arange(4)) - one).max(), 0
    )

  def test_strengths_scale_the_displacement(self):
    base = warp.identity((32, 32))
    moved = [setup(strength=s)[1].trigger['grid'] - base for s in (0.25, 0.5)]
    inside = np.s_[4:-4, 4:-4]  # away from where the clip acts
    np.testing.assert_allclose(
      moved[1][inside], 2 * moved[0][inside], atol=1e-6
    )

  def test_vmap_over_strengths_equals_loop(self):
    images = batch(8, 4)['image']
    train, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 10

    def run(strength):
      attack = attacks.wanet(spec(8), attacks.WaNetHParams(strength=strength))
      state = attack.init(KEY, train, labels)
      return attack.stamp(state, images, KEY, np.arange(4))

    strengths = jnp.array([0.0, 0.5, 2.0])
    looped = np.stack([run(float(s)) for s in strengths])
    np.testing.assert_allclose(jax.vmap(run)(strengths), looped, atol=1e-6)

  @parameterized.parameters(
    (dict(strength=-1.0), '`strength=-1.0` must not be negative'),
    (dict(grid_rescale=0.0), '`grid_rescale=0.0` must be positive'),
    (dict(cross_ratio=-1.0), '`cross_ratio=-1.0` must not be negative'),
    (dict(cross_ratio=20.0), 'covers on 2 of a batch exceed it'),
    (dict(grid_size=1), '`grid_size=1` is no field'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(8, **values)

  def test_assets_are_refused(self):
    with self.assertRaisesRegex(KeyError, "Unknown asset 'grid'"):
      attacks.wanet(spec(), None, {'grid': np.zeros(4)})


if __name__ == '__main__':
  absltest.main()
