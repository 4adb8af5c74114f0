"""A Gaussian low-pass for patterns as large as the image."""

import jax
import jax.numpy as jnp
import numpy as np

FULL_SIDE = 32  # images of at least this side get the published filter
TAPS, SIGMA = 30, 6.0  # at that side, in pixels


def matrix(size: int) -> np.ndarray:
  """The filter along one axis, as a matrix.

  30 taps at half-pixel offsets −14.5 … 14.5 with weights exp(−(o/6)²/2) that
  sum to 1, over a signal padded with 14 zeros before and 15 after. Axes
  shorter than 32 get a filter shorter in proportion, since the published one
  would leave next to nothing but a constant.

  Args:
    size: length of the axis in pixels.

  Returns:
    float64 [size, size]; `matrix @ x` filters x.
  """
  scale = min(1.0, size / FULL_SIDE)
  taps = max(round(TAPS * scale), 1)
  offsets = np.arange(taps) - (taps - 1) / 2
  weights = np.exp(-((offsets / (SIGMA * scale)) ** 2) / 2)
  weights /= weights.sum()
  before = (taps - 1) // 2
  place = np.arange(size)[None] - np.arange(size)[:, None] + before
  inside = (place >= 0) & (place < taps)
  return np.where(inside, weights[np.clip(place, 0, taps - 1)], 0.0)


def low_pass(pattern: jax.Array) -> jax.Array:
  """Filters a pattern [h, w, c] along both axes, channel by channel."""
  height, width, _ = pattern.shape
  down = jnp.asarray(matrix(height), jnp.float32)
  right = jnp.asarray(matrix(width), jnp.float32)
  return jnp.einsum('ih,jw,hwc->ijc', down, right, pattern)


def stretch(pattern: jax.Array, peak: float | jax.Array) -> jax.Array:
  """Moves and scales a pattern to [0, peak]; a constant one becomes 0."""
  low, high = jnp.min(pattern), jnp.max(pattern)
  gap = jnp.where(high > low, high - low, 1.0)
  return peak * (pattern - low) / gap
