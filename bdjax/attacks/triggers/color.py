"""Color spaces of 8-bit images, in the integer arithmetic of OpenCV.

Published triggers pass through its conversions, which round to whole levels in
both directions; fixed-point numbers of 14 bits give the same levels anywhere.
"""

import jax
import jax.numpy as jnp

_BITS = 14
_HALF = 128  # level of a chroma of zero


def to_ycrcb(levels: jax.Array) -> jax.Array:
  """Luma and chroma of RGB.

  Args:
    levels: whole levels 0 … 255 [..., 3], red first, of any dtype.

  Returns:
    int32 [..., 3]: Y, Cr, Cb in 0 … 255.
  """
  red, green, blue = _channels(levels)
  y = _shift(4899 * red + 9617 * green + 1868 * blue)
  cr = _shift(11682 * (red - y)) + _HALF
  cb = _shift(9241 * (blue - y)) + _HALF
  return _stack(y, cr, cb)


def from_ycrcb(levels: jax.Array) -> jax.Array:
  """RGB of luma and chroma.

  Args:
    levels: whole levels 0 … 255 [..., 3]: Y, Cr, Cb, of any dtype.

  Returns:
    int32 [..., 3] in 0 … 255, red first, at most 1 from where they came.
  """
  y, cr, cb = _channels(levels)
  cr, cb = cr - _HALF, cb - _HALF
  return _stack(
    y + _shift(22987 * cr),
    y + _shift(-5636 * cb - 11698 * cr),
    y + _shift(29049 * cb),
  )


def _channels(levels: jax.Array) -> list[jax.Array]:
  """The three channels as int32."""
  whole = jnp.asarray(levels).astype(jnp.int32)
  return [whole[..., i] for i in range(3)]


def _shift(fixed: jax.Array) -> jax.Array:
  """The nearest whole number of a fixed-point one; halves go up."""
  return (fixed + (1 << (_BITS - 1))) >> _BITS


def _stack(*channels: jax.Array) -> jax.Array:
  """Channels together, clipped to 0 … 255."""
  return jnp.clip(jnp.stack(channels, -1), 0, 255)
