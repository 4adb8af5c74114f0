"""Corner marks: small patterns of lighter and darker pixels in the corners."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8

from bdjax import checks, types
from bdjax.attacks.triggers import levels

WHICH = ('all', 'bottom_right')
FULL_SIDE = 32  # images of at least this side get the published map, resized
SIDE = 3
# By rows from the edge and by columns from the outside inwards.
_TOP = ((1, -1, -1), (-1, 1, -1), (1, -1, 1))
_BOTTOM = ((1, -1, 1), (-1, 1, -1), (1, -1, -1))


def corner_signs(
  image_shape: tuple[int, int, int], which: str = 'all'
) -> Int8[Array, 'h w 1']:
  """The sign map of the label-consistent attack.

  Four patterns of 3×3, mirrored left and right. Sides of more than 32 pixels
  get the 32×32 map by nearest neighbor (6×6 patterns at 64); on smaller images
  the patterns stay 3×3, since fewer pixels would lose them.

  Args:
    image_shape: (h, w, c).
    which: 'all' corners or the 'bottom_right' one alone.

  Returns:
    int8 [h, w, 1] of −1 (darker), 0 (as it is) and 1 (lighter).

  Raises:
    ValueError: for an unknown choice, or sides on which corners would meet.
  """
  checks.one_of(WHICH, corners=which)
  height, width, _ = image_shape
  if min(height, width) < 2 * SIDE:
    raise ValueError(
      f'Images of {height}×{width} have no room for corner patterns of 3×3; '
      'their sides must be 6 or more.'
    )
  drawn = _draw(min(height, FULL_SIDE), min(width, FULL_SIDE), which)
  rows, columns = (_nearest(side) for side in (height, width))
  return jnp.asarray(drawn[rows][:, columns, None], jnp.int8)


def add_signs(
  image: types.Image,
  signs: Int8[Array, 'h w 1'],
  amplitude: float | jax.Array,
) -> jax.Array:
  """trunc(clip(x + 255·a·s)) in grey levels.

  Args:
    image: float [h, w, c] in [0, 1].
    signs: from `corner_signs`.
    amplitude: a in [0, 1]; 0 = the image, 1 = black and white.

  Returns:
    float [h, w, c]; elements where the sign is 0 are bit-identical.
  """
  added = levels.to_levels(image) + 255 * amplitude * signs
  return jnp.where(signs != 0, levels.to_image(levels.truncate(added)), image)


def _draw(height: int, width: int, which: str) -> np.ndarray:
  """The map before resizing, [h, w]."""
  signs = np.zeros((height, width), np.int8)
  top, bottom = np.asarray(_TOP), np.asarray(_BOTTOM)[::-1]
  signs[-SIDE:, -SIDE:] = bottom[:, ::-1]
  if which == 'all':
    signs[:SIDE, :SIDE] = top
    signs[:SIDE, -SIDE:] = top[:, ::-1]
    signs[-SIDE:, :SIDE] = bottom
  return signs


def _nearest(side: int) -> np.ndarray:
  """Which row or column of the drawn map each one of an image takes."""
  drawn = min(side, FULL_SIDE)
  return np.floor((np.arange(side) + 0.5) * drawn / side).astype(int)
