"""How much a trigger shows: PSNR, SSIM, and the spectrum of what it changes.

All of it compares images with their clean originals, pixel space [0, 1].

References:
  Wang et al., Image Quality Assessment: From Error Visibility to Structural
  Similarity, IEEE TIP 2004.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bdjax import types

WINDOW = 11  # side of SSIM's window in pixels
SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
CAP = 100.0  # dB, of images that are equal


def psnr(clean: types.Images, changed: types.Images) -> Float[Array, ' b']:
  """Peak signal-to-noise ratio of each image.

  Args:
    clean: float [b, h, w, c] in [0, 1].
    changed: the same images, changed.

  Returns:
    [b], 10·log₁₀(1 / mean squared difference) in dB, at most `CAP`.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> x = jnp.zeros((1, 8, 8, 3))
    >>> psnr(x, x + 0.1).round(2).tolist()
    [20.0]
  """
  _check(clean, changed)
  error = jnp.mean((changed - clean) ** 2, axis=(1, 2, 3))
  return -10 * jnp.log10(jnp.maximum(error, 10 ** (-CAP / 10)))


def ssim(clean: types.Images, changed: types.Images) -> Float[Array, ' b']:
  """Structural similarity of each image; 1 for equal ones.

  Windows of 11×11 pixels, Gaussian of σ = 1.5, only where they fit; images
  smaller than that get the largest odd window that fits. Mean over windows
  and channels.

  Args:
    clean: float [b, h, w, c] in [0, 1].
    changed: the same images, changed.

  Returns:
    [b], at most 1.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> x = jnp.linspace(0, 1, 192).reshape(1, 8, 8, 3)
    >>> ssim(x, x).tolist()
    [1.0]
  """
  _check(clean, changed)
  rows, columns = (_windows(side) for side in clean.shape[1:3])

  def local(x):
    return jnp.einsum('ih,jw,bhwc->bijc', rows, columns, x, precision='highest')

  mean_x, mean_y = local(clean), local(changed)
  var_x = local(clean**2) - mean_x**2
  var_y = local(changed**2) - mean_y**2
  covariance = local(clean * changed) - mean_x * mean_y
  luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
  structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
  return jnp.mean(luminance * structure, axis=(1, 2, 3))


def spectrum(clean: types.Images, changed: types.Images) -> Float[Array, 'h w']:
  """Mean magnitude of the difference's frequencies.

  Args:
    clean: float [b, h, w, c] in [0, 1].
    changed: the same images, changed.

  Returns:
    [h, w], frequency 0 at (h // 2, w // 2); the mean over images and channels
    of |DFT| of the difference, in pixel values.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> x = jnp.zeros((1, 4, 4, 1))
    >>> spectrum(x, x + 0.5)[2].tolist()  # a constant has frequency 0 alone
    [0.0, 0.0, 8.0, 0.0]
  """
  _check(clean, changed)
  magnitude = jnp.abs(jnp.fft.fft2(changed - clean, axes=(1, 2)))
  return jnp.fft.fftshift(magnitude.mean((0, 3)))


def _windows(side: int) -> np.ndarray:
  """Weights of every window that fits, [number, side]."""
  size = min(WINDOW, side - (side + 1) % 2)
  weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * SIGMA**2))
  weights /= weights.sum()
  placed = [
    np.pad(weights, (first, side - size - first))
    for first in range(side - size + 1)
  ]
  return np.asarray(placed, np.float32)


def _check(clean: jax.Array, changed: jax.Array) -> None:
  if clean.ndim != 4 or clean.shape != changed.shape:
    raise ValueError(
      f'`clean` has shape {clean.shape} and `changed` {changed.shape}; both '
      'must be [b, h, w, c], the same images in the same order.'
    )
