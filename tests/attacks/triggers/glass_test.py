"""Light, blurs, ghosts and vignettes against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage, stats

from bdjax.attacks.triggers import glass

KEY = jax.random.key(0)


def picture(height=12, width=9, channels=3):
  return np.random.default_rng(0).random((height, width, channels))


def enlarge(x, size):
  """Linear between the centers of pixels, one sample after the other."""
  out = np.zeros((size, *x.shape[1:]))
  for i in range(size):
    at = np.clip((i + 0.5) * len(x) / size - 0.5, 0, len(x) - 1)
    low = int(np.floor(at))
    high = min(low + 1, len(x) - 1)
    out[i] = (1 - (at - low)) * x[low] + (at - low) * x[high]
  return out


class GlassTest(parameterized.TestCase):
  def test_light_and_back_keeps_every_level(self):
    grey = jnp.arange(256).reshape(1, 256, 1)
    light = glass.to_light(grey)
    np.testing.assert_allclose(light[0, :, 0], (np.arange(256) / 255) ** 2.2)
    for convert in (glass.to_image, jax.jit(glass.to_image)):
      back = np.round(255 * np.asarray(convert(light)))
      np.testing.assert_array_equal(back, grey)

  def test_light_outside_of_the_unit_interval_is_clipped(self):
    got = glass.to_image(jnp.array([-1.0, 2.0]).reshape(1, 2, 1))
    np.testing.assert_array_equal(got.ravel(), [0, 1])

  @parameterized.product(sigma=(1.0, 2.2, 5.0), size=(32, 12, 5))
  def test_blur_is_a_mirrored_gaussian(self, sigma, size):
    radius = int(np.ceil(2 * sigma))
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-(taps**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    want = light = picture(size, size)
    for axis in (0, 1):
      want = ndimage.correlate1d(want, kernel, axis=axis, mode='mirror')
    got = glass.gaussian_blur(jnp.asarray(light, jnp.float32), sigma)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_blur_of_nothing_is_the_picture(self):
    light = jnp.asarray(picture(), jnp.float32)
    np.testing.assert_allclose(
      glass.gaussian_blur(light, 0.0), light, atol=1e-6
    )

  @parameterized.parameters((3, 2, 0.3), (1, 5, 1.0), (4, 4, 0.0))
  def test_double_by_hand(self, down, right, weight):
    light = picture()
    height, width, _ = light.shape
    mixed = (
      weight * light[down:, right:]
      + (1 - weight) * light[: height - down, : width - right]
    )
    want = enlarge(mixed, height)
    want = enlarge(want.swapaxes(0, 1), width).swapaxes(0, 1)
    got = jax.jit(glass.double)(
      jnp.asarray(light, jnp.float32), (down, right), weight
    )
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_dim_by_hand(self):
    """One channel too bright: its mean excess is 0.3, times 1.1."""
    reflected = np.full((2, 2, 2), 0.5, np.float32)
    transmitted = np.full((2, 2, 2), 0.4, np.float32)
    transmitted[0, :, 0] = 0.7, 0.9
    got = glass.dim(jnp.asarray(reflected), jnp.asarray(transmitted), 1.1)
    np.testing.assert_allclose(got[..., 0], 0.5 - 0.33, atol=1e-6)
    np.testing.assert_array_equal(got[..., 1], 0.5)

  def test_dim_ends_at_black(self):
    one = jnp.ones((2, 2, 1))
    np.testing.assert_array_equal(glass.dim(one, one, 1.1), 0)

  @parameterized.parameters(32, 31, 64)
  def test_vignette_is_the_root_of_a_normal_density(self, size):
    got = np.asarray(glass.vignette((size, size), KEY))
    self.assertEqual(got.shape, (size, size, 1))
    self.assertAlmostEqual(got.max(), 1, places=6)
    at = np.linspace(-3, 3, size)
    profile = np.sqrt(stats.norm.pdf(at) / stats.norm.pdf(at).max())
    middle = got[size // 2, :, 0] / got[size // 2, size // 2, 0]
    np.testing.assert_allclose(middle, profile, atol=0.02)
    np.testing.assert_allclose(got, got[::-1, ::-1], rtol=1e-5)
    np.testing.assert_allclose(got, got.swapaxes(0, 1), rtol=1e-5)

  def test_vignette_of_other_images_is_a_part_of_the_square(self):
    square = np.asarray(glass.vignette((12, 12), KEY))
    starts = set()
    for seed in range(40):
      part = np.asarray(glass.vignette((12, 9), jax.random.key(seed)))
      found = [
        i for i in range(4) if np.array_equal(part, square[:, i : i + 9])
      ]
      self.assertLen(found, 1)
      starts.update(found)
    self.assertEqual(starts, {0, 1, 2, 3})


if __name__ == '__main__':
  absltest.main()
