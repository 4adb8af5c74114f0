"""CTRL: the released levels, which coefficients change, clean-label."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import fft

from bdjax import attacks, types
from tests.eval import linear
from tests.reference import golden

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM = 20
TO_YUV = np.array(
  [[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.1]]
)


def reference():
  return golden.arrays('triggers_clean_label', 'ctrl_')


def images_u8():
  return golden.arrays('triggers_static')['images_u8']


def spec(size=32, channels=3):
  return linear.spec(shape=(size, size, channels), num_classes=10)


def setup(size=32, **kwargs):
  attack = attacks.ctrl(spec(size), attacks.CtrlHParams(**kwargs))
  train = np.zeros((NUM, size, size, 3), np.uint8)
  return attack, attack.init(KEY, train, np.arange(NUM) % 10)


def stamp(images, **kwargs):
  """The bytes of stamped byte images."""
  attack, state = setup(images.shape[1], **kwargs)
  got = attack.stamp(
    state, jnp.asarray(images) / 255, KEY, np.arange(len(images))
  )
  return np.round(255 * np.asarray(got)).astype(np.uint8)


def grey(size, level=128, num=1):
  return np.full((num, size, size, 3), level, np.uint8)


class CtrlTest(parameterized.TestCase):
  @parameterized.parameters((False, 'clip_out'), (True, 'out'))
  def test_equals_the_reference(self, wrap, name):
    got = stamp(images_u8(), wrap=wrap)
    np.testing.assert_array_equal(got, reference()[name])

  def test_almost_one_fixed_pattern(self):
    """But for 40 of 12,288 values, since the matrices are no inverses."""
    pattern = np.asarray(setup()[1].trigger['pattern'])[None]
    fixed = np.clip(images_u8() + pattern.astype(np.float64), 0, 255)
    gap = fixed.astype(np.uint8) - stamp(images_u8()).astype(int)
    self.assertEqual(np.count_nonzero(gap), 40)
    self.assertEqual(np.abs(gap).max(), 1)

  @parameterized.parameters(8, 16, 32, 64)
  def test_only_the_chosen_coefficients_change(self, size):
    _, state = setup(size)
    pattern = np.asarray(state.trigger['pattern'], np.float64)
    chosen = np.zeros((size, size))
    for u in (15, 31) if size >= 32 else (size // 2 - 1, size - 1):
      chosen[u, u] = 100
    added = stamp(grey(size))[0].astype(float) - 128
    # Dropping fractions takes half a level off everywhere, the first
    # coefficient; the rest of the rounding is spread over all of them.
    for channel, gain in enumerate((1.14, -0.977, 2.029)):
      exact = fft.dctn(pattern[..., channel], norm='ortho')
      np.testing.assert_allclose(exact, gain * chosen, atol=1e-3)
    if size < 32:  # a stronger pattern, which is clipped
      return
    for channel, gain in enumerate((1.14, -0.977, 2.029)):
      got = fft.dctn(added[..., channel], norm='ortho')
      got[0, 0] = 0
      np.testing.assert_allclose(got, gain * chosen, atol=5)

  def test_peaks(self):
    """At 32: 10.65 levels of U and V, times the gain of blue."""
    peak = lambda size: np.abs(setup(size)[1].trigger['pattern']).max()
    self.assertAlmostEqual(peak(32), 10.648 * 2.029, places=2)
    self.assertAlmostEqual(peak(16), 43, delta=0.5)

  def test_luma_stays_in_the_pattern(self):
    pattern = np.asarray(setup()[1].trigger['pattern'], np.float64)
    luma, u, v = np.moveaxis(pattern @ TO_YUV.T, -1, 0)
    self.assertLess(np.abs(luma).max(), 0.05)
    np.testing.assert_allclose(u, v, atol=0.05)

  def test_chosen_channels_alone(self):
    """V alone does not reach blue, U alone not red."""
    for channel, untouched in ((1, 0), (2, 2)):
      _, state = setup(channels=(channel,))
      moved = np.any(np.asarray(state.trigger['pattern']) != 0, (0, 1))
      np.testing.assert_array_equal(moved, np.arange(3) != untouched)

  def test_window_tiles_larger_images(self):
    pattern = np.asarray(setup(64, window=32)[1].trigger['pattern'])
    want = np.tile(np.asarray(setup(32)[1].trigger['pattern']), (2, 2, 1))
    np.testing.assert_array_equal(pattern, want)
    whole = np.asarray(setup(64)[1].trigger['pattern'])
    self.assertFalse(np.array_equal(whole, want))

  @parameterized.product(wrap=(False, True))
  def test_magnitude_zero_keeps_grey_and_others_up_to_one_level(self, wrap):
    got = stamp(images_u8(), magnitude=0.0, wrap=wrap).astype(int)
    gap = np.minimum(np.abs(got - images_u8()), 256 - np.abs(got - images_u8()))
    self.assertLessEqual(gap.max(), 1)
    ramp = np.tile(np.arange(32, dtype=np.uint8)[:, None, None], (1, 1, 32, 3))
    ramp = 8 * ramp.reshape(1, 32, 32, 3)
    np.testing.assert_array_equal(stamp(ramp, magnitude=0.0, wrap=wrap), ramp)

  @parameterized.parameters(0, 255)
  def test_extremes_are_clipped_or_wrapped(self, level):
    clipped = np.abs(stamp(grey(32, level)).astype(int) - level)
    wrapped = np.abs(stamp(grey(32, level), wrap=True).astype(int) - level)
    self.assertBetween(clipped.max(), 20, 22)
    self.assertBetween(wrapped.max(), 253, 255)
    same = clipped > 0
    np.testing.assert_array_equal(clipped[same], wrapped[same])

  @parameterized.product(wrap=(False, True), magnitude=(100.0, 1e6))
  def test_images_stay_in_the_unit_interval_and_on_the_8_bit_grid(
    self, wrap, magnitude
  ):
    attack, state = setup(16, magnitude=magnitude, wrap=wrap)
    images = jnp.asarray(RNG.integers(0, 256, (4, 16, 16, 3))) / 255.0
    got = np.asarray(attack.stamp(state, images, KEY, np.arange(4)))
    self.assertBetween(got.min(), 0, 1)
    self.assertBetween(got.max(), 0, 1)
    np.testing.assert_allclose(255 * got, np.round(255 * got), atol=1e-4)

  def test_huge_magnitudes_leave_nothing_of_the_image(self):
    pattern = np.asarray(setup(magnitude=1e6)[1].trigger['pattern'])[None]
    got = stamp(images_u8(), magnitude=1e6)
    lost = np.broadcast_to(np.abs(pattern) > 512, got.shape)
    want = np.broadcast_to(np.where(pattern > 0, 255, 0), got.shape)
    self.assertGreater(lost.mean(), 0.9)
    np.testing.assert_array_equal(got[lost], want[lost])

  def test_poisons_the_target_class_and_leaves_untouched_rows(self):
    attack, state = setup(8, target_label=3)
    index = jnp.arange(NUM)
    images = jnp.asarray(RNG.random((NUM, 8, 8, 3)), jnp.float32)
    batch = {'image': images, 'label': index % 10, 'index': index}
    got = attack.poison(state, batch, KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 1)
    self.assertIn(np.flatnonzero(poisoned)[0], (3, 13))
    np.testing.assert_array_equal(got['image'][~poisoned], images[~poisoned])
    np.testing.assert_array_equal(
      got['image'][poisoned],
      attack.stamp(state, images, KEY, index)[poisoned],
    )

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

  def test_vmap_over_magnitudes_equals_loop(self):
    images = jnp.asarray(images_u8()) / 255
    train = np.zeros((NUM, 32, 32, 3), np.uint8)

    def run(magnitude):
      hp = attacks.CtrlHParams(magnitude=magnitude)
      attack = attacks.ctrl(spec(), hp)
      state = attack.init(KEY, train, np.arange(NUM) % 10)
      return attack.stamp(state, images, KEY, np.arange(4))

    magnitudes = jnp.array([0.0, 30.0, 100.0])
    looped = np.stack([run(float(m)) for m in magnitudes])
    np.testing.assert_array_equal(jax.vmap(run)(magnitudes), looped)
    np.testing.assert_array_equal(jax.jit(run)(30.0), looped[1])

  def test_grey_images_of_one_channel_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'repeat grey images three times'):
      attacks.ctrl(spec(channels=1))

  @parameterized.parameters(
    (dict(magnitude=-1.0), '`magnitude=-1.0` must not be negative'),
    (dict(channels=(1, 3)), '`channels=3`'),
    (dict(window=0), '`window=0` must be positive'),
    (dict(positions=((40, 1),)), r'\(40, 1\).*below `window=32`'),
    (dict(poison_ratio=0.2), 'class 0 has only 2 of the 20'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_assets_are_refused(self):
    with self.assertRaisesRegex(KeyError, "Unknown asset 'picture'"):
      attacks.ctrl(spec(), None, {'picture': grey(4)})


if __name__ == '__main__':
  absltest.main()
