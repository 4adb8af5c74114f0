"""The low-pass: its taps, its padding, what it lets through."""

import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from scipy import fft

from bdjax.attacks.triggers import low_pass

RNG = np.random.default_rng(0)


def weights():
  offsets = np.arange(30) - 14.5
  w = np.exp(-((offsets * 5 / 30) ** 2) / 2)
  return w / w.sum()


class LowPassTest(parameterized.TestCase):
  def test_taps_and_padding_as_published(self):
    x = RNG.random(40)
    want = np.correlate(np.pad(x, (14, 15)), weights(), 'valid')
    np.testing.assert_allclose(low_pass.matrix(40) @ x, want, rtol=1e-12)

  def test_shrinks_with_small_images(self):
    inner = low_pass.matrix(16)[8]
    place = np.arange(16)
    center = inner @ place
    deviation = np.sqrt(inner @ (place - center) ** 2)
    self.assertBetween(deviation, 2.5, 3.0)  # 3 pixels, cut off by the taps
    self.assertEqual(np.count_nonzero(low_pass.matrix(16)[7]), 15)

  @parameterized.parameters(1, 3)
  def test_filters_each_channel_along_both_axes(self, channels):
    pattern = RNG.random((8, 32, channels)).astype(np.float32)
    got = np.asarray(low_pass.low_pass(jnp.asarray(pattern)))
    for i in range(channels):
      want = low_pass.matrix(8) @ pattern[..., i] @ low_pass.matrix(32).T
      np.testing.assert_allclose(got[..., i], want, rtol=1e-5)

  @parameterized.parameters(16, 32, 64)
  def test_leaves_low_frequencies_alone(self, side):
    noise = jnp.asarray(RNG.standard_normal((side, side, 1)), jnp.float32)
    energy = fft.dctn(np.asarray(low_pass.low_pass(noise))[..., 0]) ** 2
    quarter = side // 4
    self.assertLess(1 - energy[:quarter, :quarter].sum() / energy.sum(), 0.05)

  def test_stretch(self):
    got = low_pass.stretch(jnp.asarray([-1.0, 0.0, 3.0]), 0.2)
    np.testing.assert_allclose(got, [0.0, 0.05, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(low_pass.stretch(jnp.ones(3), 0.2), 0)
