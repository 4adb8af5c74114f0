"""Color depth: images of a few levels per channel.

All of it in grey levels 0 … 255, of which `num` evenly spaced ones are left;
most of those are no whole numbers.
"""

import jax
import jax.numpy as jnp


def squeeze(levels: jax.Array, num: int) -> jax.Array:
  """The nearest of `num` levels: round(x/255·(n−1))/(n−1)·255.

  Args:
    levels: grey levels of any shape; what lies outside 0 … 255 gets the
      outermost.
    num: how many there are, at least 2.

  Returns:
    float levels of the same shape.
  """
  step = jnp.round(levels / 255 * (num - 1))
  # Fused with a division by 255 it may come out a rounding error above.
  return jnp.minimum(jnp.clip(step, 0, num - 1) / (num - 1) * 255, 255)


def dither(levels: jax.Array, num: int) -> jax.Array:
  """The same with Floyd–Steinberg dithering, on whole levels.

  Pixel by pixel, each passes on its error: 7/16 to the right, 3/16, 5/16 and
  1/16 below to the left, straight and to the right; channels for themselves.

  Args:
    levels: grey levels [h, w, c] in 0 … 255.
    num: how many are left, at least 2.

  Returns:
    float levels [h, w, c], rounded.
  """

  def pixel(left_error, level):
    wanted = level + 7 / 16 * left_error
    new = squeeze(wanted, num)
    return wanted - new, (new, wanted - new)

  def row(above, level):
    """One row, given the errors of the one above it."""
    left, right = _shifted(above, 1), _shifted(above, -1)
    level = level + 1 / 16 * left + 5 / 16 * above + 3 / 16 * right
    _, (new, error) = jax.lax.scan(pixel, jnp.zeros_like(level[0]), level)
    return error, new

  _, new = jax.lax.scan(row, jnp.zeros_like(levels[0]), levels)
  return jnp.round(new)


def _shifted(errors: jax.Array, by: int) -> jax.Array:
  """Errors [w, c] moved along the row, 0 where none come from."""
  empty = jnp.zeros_like(errors[:1])
  if by > 0:
    return jnp.concatenate([empty, errors[:-1]])
  return jnp.concatenate([errors[1:], empty])
