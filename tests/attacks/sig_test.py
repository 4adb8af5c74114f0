"""SIG: the released levels, the wave by hand, clean-label selection."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, types
from tests.eval import linear
from tests.reference import golden

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM = 20


def reference():
  return golden.arrays('triggers_clean_label', 'sig_')


def images_u8():
  return golden.arrays('triggers_static')['images_u8']


def spec(width=32, channels=3):
  return linear.spec(shape=(width, width, channels), num_classes=10)


def setup(width=32, channels=3, **kwargs):
  hp = attacks.SigHParams(**{'poison_ratio': 0.1, **kwargs})
  attack = attacks.sig(spec(width, channels), hp)
  train = np.zeros((NUM, width, width, channels), np.uint8)
  return attack, attack.init(KEY, train, np.arange(NUM) % 10)


def stamp(images, **kwargs):
  """The bytes of stamped byte images."""
  attack, state = setup(images.shape[1], images.shape[3], **kwargs)
  got = attack.stamp(
    state, jnp.asarray(images) / 255, KEY, np.arange(len(images))
  )
  return np.round(255 * np.asarray(got)).astype(np.uint8)


class SigTest(parameterized.TestCase):
  @parameterized.parameters(40, 30)
  def test_legacy_equals_the_reference(self, delta):
    got = stamp(images_u8(), amplitude_test=delta / 255, legacy=True)
    np.testing.assert_array_equal(got, reference()[f'out_delta{delta}'])

  def test_default_equals_the_reference_with_exact_zeros(self):
    got = stamp(images_u8())
    np.testing.assert_array_equal(got, reference()['exactzero_out_delta40'])

  def test_the_release_loses_a_level_of_column_16(self):
    lost = stamp(images_u8()).astype(int) - stamp(images_u8(), legacy=True)
    rest = np.delete(lost, 16, axis=2)
    np.testing.assert_array_equal(rest, 0)
    np.testing.assert_array_equal(lost[:, :, 16], images_u8()[:, :, 16] > 0)

  def test_wave_by_hand(self):
    wave = np.asarray(setup()[1].trigger['test'])
    want = [0, 36.955, 28.284, -15.307, -40, -15.307, 28.284, 36.955]
    np.testing.assert_allclose(wave[:8], want, atol=1e-3)
    np.testing.assert_allclose(
      wave, reference()['pattern_exactzero_delta40'], atol=1e-5
    )

  @parameterized.parameters((32, 6, 16), (16, 6, 8), (8, 6, 4), (64, 6, 32))
  def test_the_wave_repeats_itself_exactly(self, width, frequency, period):
    _, state = setup(width, frequency=frequency)
    wave = np.asarray(state.trigger['test'])
    np.testing.assert_array_equal(wave[:-period], wave[period:])
    self.assertEqual(wave[0], 0)
    self.assertGreater(np.abs(wave).max(), 35)

  def test_rows_and_channels_are_alike(self):
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    added = stamp(grey)[0].astype(int) - 100
    want = np.broadcast_to(added[:1, :, :1], added.shape)
    np.testing.assert_array_equal(added, want)
    floor = np.floor(np.asarray(setup()[1].trigger['test']) + 1e-4)
    np.testing.assert_array_equal(added[0, :, 0], floor)

  def test_images_of_one_channel(self):
    grey = np.full((1, 16, 16, 1), 100, np.uint8)
    self.assertEqual(stamp(grey).max(), 140)

  @parameterized.product(legacy=(False, True))
  def test_amplitude_zero_is_the_identity(self, legacy):
    got = stamp(images_u8(), amplitude_test=0.0, legacy=legacy)
    np.testing.assert_array_equal(got, images_u8())

  @parameterized.product(amplitude=(0.15, 1.0), legacy=(False, True))
  def test_images_stay_in_the_unit_interval_and_on_the_8_bit_grid(
    self, amplitude, legacy
  ):
    attack, state = setup(16, amplitude_test=amplitude, legacy=legacy)
    images = jnp.asarray(RNG.integers(0, 256, (4, 16, 16, 3))) / 255.0
    got = np.asarray(attack.stamp(state, images, KEY, np.arange(4)))
    self.assertBetween(got.min(), 0, 1)
    self.assertBetween(got.max(), 0, 1)
    np.testing.assert_allclose(255 * got, np.round(255 * got), atol=1e-4)

  @parameterized.product(legacy=(False, True))
  def test_training_and_test_amplitudes_are_separate(self, legacy):
    attack, state = setup(
      16, amplitude=20 / 255, amplitude_test=0.0, legacy=legacy, num_poison=2
    )
    images = jnp.full((NUM, 16, 16, 3), 100.0) / 255
    index = jnp.arange(NUM)
    batch = {'image': images, 'label': index % 10, 'index': index}
    poisoned = 255 * np.asarray(attack.poison(state, batch, KEY)['image'])[0]
    self.assertEqual(round(float(poisoned.max())), 120)
    stamped = attack.stamp(state, images, KEY, index)
    np.testing.assert_array_equal(stamped, images)

  @parameterized.product(clean_label=(True, False))
  def test_poisons_the_target_class_and_leaves_untouched_rows(
    self, clean_label
  ):
    attack, state = setup(
      8, target_label=3, poison_ratio=0.1, clean_label=clean_label
    )
    index = jnp.arange(NUM)
    images = jnp.asarray(RNG.random((NUM, 8, 8, 3)), jnp.float32)
    batch = {'image': images, 'label': index % 10, 'index': index}
    got = attack.poison(state, batch, KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 2)
    self.assertEqual(attack.info.clean_label, clean_label)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(
        got[name][~poisoned], batch[name][~poisoned]
      )
    np.testing.assert_array_equal(
      got['image'][poisoned],
      attack.stamp(state, images, KEY, index)[poisoned],
    )
    np.testing.assert_array_equal(got['label'][poisoned], 3)
    np.testing.assert_array_equal(attack.relabel(index % 10), 3)
    if clean_label:
      np.testing.assert_array_equal(np.flatnonzero(poisoned), [3, 13])

  def test_labels_of_the_training_set_stay(self):
    attack, state = setup(8)
    index = jnp.arange(NUM)
    batch = {
      'image': jnp.zeros((NUM, 8, 8, 3)),
      'label': index % 10,
      'index': index,
    }
    got = attack.poison(state, batch, KEY)['label']
    np.testing.assert_array_equal(got, index % 10)

  def test_more_than_the_class_holds_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'class 0 has only 2 of the 20'):
      setup(poison_ratio=0.2)

  def test_all_to_all_is_refused(self):
    with self.assertRaisesRegex(ValueError, "`label_mode='all2all'`"):
      setup(label_mode='all2all')

  def test_vmap_over_amplitudes_equals_loop(self):
    images = jnp.asarray(images_u8()) / 255
    train = np.zeros((NUM, 32, 32, 3), np.uint8)

    def run(amplitude):
      hp = attacks.SigHParams(amplitude_test=amplitude)
      attack = attacks.sig(spec(), hp)
      state = attack.init(KEY, train, np.arange(NUM) % 10)
      return attack.stamp(state, images, KEY, np.arange(4))

    amplitudes = jnp.array([0.0, 40 / 255, 0.3])
    looped = np.stack([run(float(a)) for a in amplitudes])
    np.testing.assert_array_equal(jax.vmap(run)(amplitudes), looped)
    np.testing.assert_array_equal(jax.jit(run)(0.3), looped[2])

  @parameterized.parameters(
    (dict(amplitude=40.0), r'`amplitude=40.0` is not in \[0, 1\]'),
    (dict(amplitude_test=-0.1), '`amplitude_test=-0.1`'),
    (dict(frequency=0), '`frequency=0` must be positive'),
    (dict(frequency=16), '`frequency=16` makes a wave that is zero.*below 16'),
    (dict(frequency=32), 'below 16'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_legacy_refuses_traced_amplitudes(self):
    train = (np.zeros((NUM, 32, 32, 3), np.uint8), np.arange(NUM) % 10)
    run = jax.jit(lambda hp: attacks.sig(spec(), hp).init(KEY, *train))
    with self.assertRaisesRegex(TypeError, 'legacy=False'):
      run(attacks.SigHParams(legacy=True))

  def test_assets_are_refused(self):
    with self.assertRaisesRegex(KeyError, "Unknown asset 'picture'"):
      attacks.sig(spec(), None, {'picture': np.zeros((4, 4), np.uint8)})


if __name__ == '__main__':
  absltest.main()
