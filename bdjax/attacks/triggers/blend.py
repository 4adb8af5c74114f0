"""Blends: a picture laid over the whole image with one weight."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from bdjax import types
from bdjax.attacks.triggers import levels


def blend(
  image: types.Image,
  picture: UInt8[Array, 'h w c'],
  alpha: float | jax.Array,
) -> jax.Array:
  """trunc((1 − α)·x + α·g) in grey levels, exact whole numbers kept.

  Args:
    image: float [h, w, c] in [0, 1].
    picture: uint8 [h, w, c], g.
    alpha: weight α in [0, 1]; 0 = the image, 1 = the picture.

  Returns:
    float [h, w, c] in [0, 1] on the 8-bit grid.
  """
  mixed = (1 - alpha) * levels.to_levels(image) + alpha * picture
  return levels.to_image(levels.truncate(mixed))


def blend_table(alpha: float) -> np.ndarray:
  """The released mixed-precision blend for each pair of grey levels.

  (1 − α)·x in float64 plus α·g in float32, truncated: an exact whole number
  may come out one level lower than the formula says.

  Args:
    alpha: weight α in [0, 1], a Python number.

  Returns:
    uint8 [256, 256], level of the blend for image level x and picture level g.

  Raises:
    TypeError: if alpha is no Python number.
  """
  if not isinstance(alpha, int | float):
    raise TypeError(
      f'`alpha` is a {type(alpha).__name__}; the legacy blend computes in '
      'float64 on the host, so close over a Python number, or use '
      '`legacy=False` to trace it.'
    )
  grey = np.arange(256)
  image_part = (1 - alpha) * grey.astype(np.float64)
  picture_part = np.float32(alpha) * grey.astype(np.float32)
  mixed = image_part[:, None] + picture_part[None, :]
  return np.clip(mixed, 0, 255).astype(np.uint8)


def blend_by_table(
  image: types.Image,
  picture: UInt8[Array, 'h w c'],
  table: UInt8[Array, '256 256'],
) -> jax.Array:
  """The blend looked up in a table of `blend_table`.

  Args:
    image: float [h, w, c] in [0, 1].
    picture: uint8 [h, w, c].
    table: uint8 [256, 256].

  Returns:
    float [h, w, c] in [0, 1] on the 8-bit grid.
  """
  rows = levels.to_levels(image).astype(jnp.int32)
  return levels.to_image(table[rows, picture.astype(jnp.int32)])
