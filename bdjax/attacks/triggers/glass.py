"""Glass: what a pane reflects, in linear light.

Light adds up; grey levels, which are its 1/2.2-th power, do not. All functions
take one picture of linear light, float [h, w, c].
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.attacks.triggers import levels

MAX_SIGMA = 5  # of the blur, whose kernel then reaches 2·σ to either side
_GAMMA = 2.2
_RADIUS = 2 * MAX_SIGMA
_SPAN = 3  # deviations from the middle of a vignette to its rim
_LIGHT = ((np.arange(256) / 255) ** _GAMMA).astype(np.float32)


def to_light(grey: jax.Array) -> jax.Array:
  """Linear light of whole levels 0 … 255, of any dtype."""
  return jnp.asarray(_LIGHT)[grey.astype(jnp.int32)]


def to_image(light: jax.Array) -> jax.Array:
  """The image in [0, 1] of linear light, on the 8-bit grid."""
  grey = 255 * jnp.clip(light, 0, 1) ** (1 / _GAMMA)
  return levels.to_image(levels.truncate(grey))


def double(
  light: jax.Array, offset: Sequence[int | jax.Array], weight: jax.Array
) -> jax.Array:
  """A picture and its copy, shifted by an offset, where both are seen.

  Their common part is scaled to the size of the whole, linearly between the
  centers of pixels.

  Args:
    light: float [h, w, c].
    offset: whole pixels down and right, positive; may be traced.
    weight: of the part that lies `offset` further on; 1 − weight of the other.

  Returns:
    float [h, w, c].
  """
  rows, columns = (
    _enlarge(side, shift)
    for side, shift in zip(light.shape, offset, strict=False)
  )
  here = _separable(rows[0], columns[0], light)
  further = _separable(rows[1], columns[1], light)
  return weight * further + (1 - weight) * here


def gaussian_blur(light: jax.Array, sigma: jax.Array) -> jax.Array:
  """A Gaussian of 2·⌈2σ⌉ + 1 taps; the picture is mirrored at its rim.

  Args:
    light: float [h, w, c].
    sigma: in pixels, at most `MAX_SIGMA`; may be traced.

  Returns:
    float [h, w, c].
  """
  taps = jnp.arange(-_RADIUS, _RADIUS + 1)
  kernel = jnp.exp(-(taps**2) / (2 * jnp.maximum(sigma, 1e-3) ** 2))
  # The number of taps is static, how many count is not.
  kernel = jnp.where(jnp.abs(taps) <= jnp.ceil(2 * sigma), kernel, 0)
  kernel = kernel / kernel.sum()
  rows, columns = (
    jnp.einsum('k,kij->ij', kernel, _mirrored(side), precision='highest')
    for side in light.shape[:2]
  )
  return _separable(rows, columns, light)


def dim(
  reflected: jax.Array, transmitted: jax.Array, attenuation: jax.Array
) -> jax.Array:
  """Darkens a reflection whose sum with the image is too bright.

  Args:
    reflected: float [h, w, c].
    transmitted: float [h, w, c].
    attenuation: what the mean excess over 1 is multiplied with, per channel.

  Returns:
    float [h, w, c] in [0, 1].
  """
  total = reflected + transmitted
  bright = total > 1
  number = jnp.maximum(bright.sum((0, 1), keepdims=True), 1)
  excess = jnp.where(bright, total - 1, 0).sum((0, 1), keepdims=True) / number
  return jnp.clip(reflected - attenuation * excess, 0, 1)


def vignette(shape: tuple[int, int], key: jax.Array) -> jax.Array:
  """Brightness that falls off from the middle of a square.

  The square has the image's longer side; of the shorter one, a random part.

  Args:
    shape: (h, w).
    key: typed key.

  Returns:
    float [h, w, 1], at most 1.
  """
  size = max(shape)
  row_key, column_key = jax.random.split(key)
  rows = _part(_falloff(size), shape[0], row_key)
  columns = _part(_falloff(size), shape[1], column_key)
  return (rows[:, None] * columns[None, :])[..., None]


def _falloff(size: int) -> np.ndarray:
  """Square root of a normal density's bins, with peak 1; float32 [size]."""
  reach = _SPAN + (_SPAN + 0.5) / size
  edges = np.linspace(-reach, reach, size + 1) / math.sqrt(2)
  mass = np.diff([math.erf(edge) for edge in edges])
  return np.sqrt(mass / mass.max()).astype(np.float32)


def _part(profile: np.ndarray, side: int, key: jax.Array) -> jax.Array:
  """So many entries in a row, from a random place on."""
  start = jax.random.randint(key, (), 0, len(profile) - side + 1)
  return jax.lax.dynamic_slice(jnp.asarray(profile), (start,), (side,))


def _enlarge(side: int, shift) -> tuple[jax.Array, jax.Array]:
  """Scales what begins at 0 or at `shift` and ends as much before the end.

  Returns:
    Two matrices float32 [side, side].
  """
  length = side - jnp.asarray(shift, jnp.int32)
  at = (jnp.arange(side) + 0.5) * length / side - 0.5
  at = jnp.clip(at, 0, length - 1)
  tent = lambda at: jnp.maximum(
    1 - jnp.abs(at[:, None] - jnp.arange(side)[None, :]), 0
  )
  return tent(at), tent(at + shift)


def _mirrored(side: int) -> np.ndarray:
  """Which pixel each tap of each pixel sees, float32 [taps, side, side]."""
  padded = np.pad(np.arange(side), _RADIUS, mode='reflect')
  seen = np.arange(side)[None] + np.arange(2 * _RADIUS + 1)[:, None]
  return np.eye(side, dtype=np.float32)[padded[seen]]


def _separable(rows: jax.Array, columns: jax.Array, light) -> jax.Array:
  """Applies one matrix to the rows and another one to the columns."""
  return jnp.einsum('yi,xj,ijc->yxc', rows, columns, light, precision='highest')
