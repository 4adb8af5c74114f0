"""FTrojan: the released levels, which coefficients change, small images."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import fft

from bdjax import attacks, types
from bdjax.attacks.triggers import color
from tests.eval import linear
from tests.reference import golden

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def reference(name):
  return golden.arrays('triggers_frequency')[f'ftrojan_{name}']


def images_u8():
  return golden.arrays('triggers_static')['images_u8']


def spec(size=32, channels=3):
  return linear.spec(shape=(size, size, channels), num_classes=10)


def setup(size=32, **kwargs):
  attack = attacks.ftrojan(spec(size), attacks.FTrojanHParams(**kwargs))
  train = np.zeros((20, size, size, 3), np.uint8)
  return attack, attack.init(KEY, train, np.arange(20) % 10)


def stamp(images, **kwargs):
  """The bytes of stamped byte images."""
  attack, state = setup(images.shape[1], **kwargs)
  got = attack.stamp(
    state, jnp.asarray(images) / 255, KEY, np.arange(len(images))
  )
  return np.round(255 * np.asarray(got)).astype(np.uint8)


def grey(size, level=128, num=2):
  return np.full((num, size, size, 3), level, np.uint8)


class FTrojanTest(parameterized.TestCase):
  @parameterized.parameters((False, 'round_out'), (True, 'trunc_out'))
  def test_equals_the_reference(self, legacy, name):
    got = stamp(images_u8(), legacy=legacy)
    np.testing.assert_array_equal(got, reference(name))

  def test_legacy_is_the_release_but_for_the_luma_it_loses(self):
    got = stamp(images_u8(), legacy=True).astype(int)
    gap = got - reference('out')
    self.assertLessEqual(np.abs(gap).max(), 1)
    self.assertEqual(np.count_nonzero(gap), 1600)

  def test_pattern_equals_the_reference(self):
    pattern = np.asarray(setup()[1].trigger['pattern'])
    np.testing.assert_array_equal(pattern[..., 0], 0)
    for channel in (1, 2):
      np.testing.assert_allclose(
        pattern[..., channel], reference('pattern_Q'), atol=1e-5
      )

  @parameterized.product(size=(8, 16, 32, 64), legacy=(False, True))
  def test_only_the_chosen_coefficients_change(self, size, legacy):
    _, state = setup(size, legacy=legacy)
    clean = grey(size, num=1)
    bytes_ = stamp(clean, legacy=legacy)
    # Grey levels of 128 stay inside of RGB; what comes back is a round trip.
    added = np.asarray(color.to_ycrcb(bytes_) - color.to_ycrcb(clean))[0]
    window = min(size, 32)
    low, high = window // 2 - 1, window - 1
    chosen = np.zeros((window, window), bool)
    chosen[low, low] = chosen[high, high] = True
    pattern = np.asarray(state.trigger['pattern'])
    for channel, want in ((0, 0), (1, 30), (2, 30)):
      for block in (np.s_[:window, :window], np.s_[-window:, -window:]):
        exact = fft.dctn(pattern[block][..., channel], norm='ortho')
        np.testing.assert_allclose(exact, want * chosen, atol=1e-4)
        # Rounding of the pattern and of both conversions is spread over all
        # coefficients; truncation also moves the mean, the first of them.
        got = fft.dctn(added[block][..., channel].astype(float), norm='ortho')
        np.testing.assert_allclose(got[chosen], want, atol=6)
        rest = got[~chosen][1:]
        self.assertLess(np.sqrt(np.mean(rest**2)), 0.75)

  def test_pattern_tiles_images_larger_than_the_window(self):
    pattern = np.asarray(setup(64)[1].trigger['pattern'])
    want = np.tile(np.asarray(setup()[1].trigger['pattern']), (2, 2, 1))
    np.testing.assert_array_equal(pattern, want)

  @parameterized.product(legacy=(False, True))
  def test_magnitude_zero_is_the_identity_up_to_the_round_trip(self, legacy):
    got = stamp(images_u8(), magnitude=0.0, legacy=legacy).astype(int)
    self.assertLessEqual(np.abs(got - images_u8()).max(), 1)
    ramp = np.tile(np.arange(32, dtype=np.uint8)[:, None, None], (1, 1, 32, 3))
    ramp = ramp.reshape(1, 32, 32, 3)
    np.testing.assert_array_equal(stamp(ramp, magnitude=0.0), ramp)

  def test_luma_stays_where_nothing_is_clipped(self):
    added = color.to_ycrcb(stamp(grey(32))) - color.to_ycrcb(grey(32))
    self.assertLessEqual(int(jnp.abs(added[..., 0]).max()), 1)

  def test_chosen_channels_alone(self):
    _, state = setup(channels=(2,))
    moved = np.any(np.asarray(state.trigger['pattern']) != 0, (0, 1))
    np.testing.assert_array_equal(moved, [False, False, True])

  @parameterized.parameters(0, 255)
  def test_extremes_are_clipped_and_not_wrapped(self, level):
    got = stamp(grey(8, level), magnitude=100.0).astype(int)
    distance = np.abs(got - level)
    # The largest of |Q| = 42 levels, times 1.773 for blue.
    self.assertBetween(distance.max(), 20, 75)

  def test_images_stay_in_the_unit_interval_and_on_the_8_bit_grid(self):
    attack, state = setup(16, magnitude=500.0)
    images = jnp.asarray(RNG.integers(0, 256, (4, 16, 16, 3))) / 255.0
    got = np.asarray(attack.stamp(state, images, KEY, np.arange(4)))
    self.assertBetween(got.min(), 0, 1)
    self.assertBetween(got.max(), 0, 1)
    np.testing.assert_allclose(255 * got, np.round(255 * got), atol=1e-4)

  @parameterized.product(legacy=(False, True))
  def test_the_same_under_jit(self, legacy):
    attack, state = setup(legacy=legacy)
    images = jnp.asarray(images_u8()) / 255
    run = lambda state: attack.stamp(state, images, KEY, np.arange(4))
    np.testing.assert_array_equal(jax.jit(run)(state), run(state))

  @parameterized.parameters('all2one', 'all2all')
  def test_poisons_a_share_and_leaves_untouched_rows(self, mode):
    attack, state = setup(8, label_mode=mode, target_label=3, poison_ratio=0.25)
    index = jnp.arange(20)
    images = jnp.asarray(RNG.random((20, 8, 8, 3)), jnp.float32)
    batch = {'image': images, 'label': index % 10, 'index': index}
    got = attack.poison(state, batch, KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 5)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(
        got[name][~poisoned], batch[name][~poisoned]
      )
    np.testing.assert_array_equal(
      got['image'][poisoned],
      attack.stamp(state, images, KEY, index)[poisoned],
    )
    want = 3 if mode == 'all2one' else (index[poisoned] + 1) % 10
    np.testing.assert_array_equal(got['label'][poisoned], want)

  def test_vmap_over_magnitudes_equals_loop(self):
    images = jnp.asarray(images_u8()) / 255
    train = np.zeros((20, 32, 32, 3), np.uint8)

    def run(magnitude):
      hp = attacks.FTrojanHParams(magnitude=magnitude)
      attack = attacks.ftrojan(spec(), hp)
      state = attack.init(KEY, train, np.arange(20) % 10)
      return attack.stamp(state, images, KEY, np.arange(4))

    magnitudes = jnp.array([0.0, 30.0, 100.0])
    looped = np.stack([run(float(m)) for m in magnitudes])
    np.testing.assert_array_equal(jax.vmap(run)(magnitudes), looped)

  def test_grey_images_of_one_channel_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'repeat grey images three times'):
      attacks.ftrojan(spec(channels=1))

  @parameterized.parameters(
    (dict(magnitude=-1.0), '`magnitude=-1.0` must not be negative'),
    (dict(channels=(1, 3)), '`channels=3`'),
    (dict(window=0), '`window=0` must be positive'),
    (
      dict(window=24, positions=((1, 1),)),
      '`window=24` does not divide images of 32×32',
    ),
    (dict(positions=((40, 1),)), r'\(40, 1\).*below `window=32`'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_assets_are_refused(self):
    with self.assertRaisesRegex(KeyError, "Unknown asset 'picture'"):
      attacks.ftrojan(spec(), None, {'picture': grey(4)})


if __name__ == '__main__':
  absltest.main()
