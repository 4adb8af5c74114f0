"""PSNR, SSIM and spectra by closed forms and a naive twin."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.analysis import quality

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.random((3, 16, 14, 3)), jnp.float32)
Y = jnp.clip(X + 0.1 * jnp.asarray(RNG.normal(size=X.shape)), 0, 1)


def naive_ssim(x, y, size, sigma=1.5):
  """Window by window, in float64, of one image."""
  offsets = np.arange(size) - size // 2
  line = np.exp(-(offsets**2) / (2 * sigma**2))
  weights = np.outer(line, line) / line.sum() ** 2
  values = []
  for c in range(x.shape[-1]):
    for i in range(x.shape[0] - size + 1):
      for j in range(x.shape[1] - size + 1):
        a = np.float64(x[i : i + size, j : j + size, c])
        b = np.float64(y[i : i + size, j : j + size, c])
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va = (weights * (a - ma) ** 2).sum()
        vb = (weights * (b - mb) ** 2).sum()
        cov = (weights * (a - ma) * (b - mb)).sum()
        values.append(
          (2 * ma * mb + 1e-4)
          * (2 * cov + 9e-4)
          / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        )
  return np.mean(values)


class PsnrTest(parameterized.TestCase):
  @parameterized.parameters((0.1, 20.0), (0.01, 40.0), (1.0, 0.0))
  def test_of_a_constant_step(self, step, want):
    zeros = jnp.zeros((2, 8, 8, 3))
    got = quality.psnr(zeros, zeros + step)
    np.testing.assert_allclose(got, [want] * 2, atol=1e-4)

  def test_equal_images_are_capped(self):
    np.testing.assert_allclose(quality.psnr(X, X), quality.CAP)


class SsimTest(parameterized.TestCase):
  def test_one_for_equal_images_symmetric_and_below_one_otherwise(self):
    np.testing.assert_allclose(quality.ssim(X, X), 1, atol=1e-6)
    np.testing.assert_allclose(
      quality.ssim(X, Y), quality.ssim(Y, X), atol=1e-6
    )
    self.assertLess(float(quality.ssim(X, Y).max()), 1)

  def test_equals_the_definition(self):
    pairs = zip(np.asarray(X), np.asarray(Y), strict=True)
    want = [naive_ssim(x, y, 11) for x, y in pairs]
    np.testing.assert_allclose(quality.ssim(X, Y), want, atol=2e-5)

  @parameterized.parameters((8, 7), (7, 7), (10, 9))
  def test_small_images_get_the_largest_odd_window(self, side, size):
    x, y = X[:1, :side, :side], Y[:1, :side, :side]
    want = naive_ssim(np.asarray(x[0]), np.asarray(y[0]), size)
    np.testing.assert_allclose(quality.ssim(x, y), [want], atol=2e-5)

  def test_constants_differ_in_luminance_alone(self):
    a, b = jnp.full((1, 12, 12, 1), 0.2), jnp.full((1, 12, 12, 1), 0.6)
    want = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    np.testing.assert_allclose(quality.ssim(a, b), [want], atol=1e-5)


class SpectrumTest(parameterized.TestCase):
  def test_a_cosine_has_its_two_frequencies(self):
    columns = jnp.cos(2 * jnp.pi * 3 * jnp.arange(16) / 16)
    wave = jnp.broadcast_to(columns[None, None, :, None], (1, 16, 16, 1))
    got = np.array(quality.spectrum(jnp.zeros_like(wave), wave))
    np.testing.assert_allclose(got[8, [5, 11]], 128, rtol=1e-5)
    got[8, [5, 11]] = 0
    np.testing.assert_allclose(got, 0, atol=1e-3)

  def test_averages_images_and_channels(self):
    each = [
      quality.spectrum(
        X[i : i + 1, ..., c : c + 1], Y[i : i + 1, ..., c : c + 1]
      )
      for i in range(3)
      for c in range(3)
    ]
    np.testing.assert_allclose(
      quality.spectrum(X, Y), np.mean(each, axis=0), rtol=1e-5, atol=1e-5
    )


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(quality.psnr, quality.ssim, quality.spectrum)
  def test_unlike_shapes(self, measure):
    with self.assertRaisesRegex(ValueError, 'the same images'):
      measure(X, Y[:2])

  def test_jittable(self):
    np.testing.assert_allclose(
      jax.jit(quality.ssim)(X, Y), quality.ssim(X, Y), atol=1e-6
    )
