"""Warps: images read at displaced points, by one smooth field for all of them.

Grids hold sampling points as torch does: in [−1, 1] between the centers of the
outermost pixels, the column first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bdjax import data, types

_CUBIC = -0.75  # torch's coefficient; jax.image's is −0.5

Grid = Float[Array, 'h w 2']


def cubic_matrix(num_out: int, num_in: int) -> np.ndarray:
  """Bicubic interpolation along one axis, first and last points aligned.

  Args:
    num_out: points wanted, at least 2.
    num_in: points given, at least 2; those beyond the ends repeat the last.

  Returns:
    float64 [num_out, num_in]; rows sum to 1.
  """
  position = np.arange(num_out) * (num_in - 1) / (num_out - 1)
  first = np.floor(position).astype(int)
  matrix = np.zeros((num_out, num_in))
  for tap in range(-1, 3):
    weight = _cubic(np.abs(position - first - tap))
    column = np.clip(first + tap, 0, num_in - 1)
    np.add.at(matrix, (np.arange(num_out), column), weight)
  return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
  """The convolution kernel of cubic interpolation, 0 from distance 2."""
  d, a = distance, _CUBIC
  near = ((a + 2) * d - (a + 3)) * d**2 + 1
  far = a * (((d - 5) * d + 8) * d - 4)
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def field(
  control: Float[Array, '2 k k'], shape: tuple[int, int]
) -> Float[Array, 'h w 2']:
  """A smooth field through a few control points.

  Args:
    control: displacements, the column's first; divided by the mean of their
      absolute values.
    shape: (h, w) of the images.

  Returns:
    float32 [h, w, 2], unit displacements.

  Raises:
    ValueError: if there are fewer than two control points a side.
  """
  size = control.shape[-1]
  if size < 2:
    raise ValueError(
      f'`grid_size={size}` is no field; give at least 2 points a side.'
    )
  down, right = (jnp.asarray(cubic_matrix(n, size), jnp.float32) for n in shape)
  control = control / jnp.mean(jnp.abs(control))
  return jnp.einsum('hi,wj,dij->hwd', down, right, control, precision='highest')


def identity(shape: tuple[int, int]) -> Grid:
  """The grid that leaves images of (h, w) as they are."""
  rows, columns = (jnp.linspace(-1, 1, n, dtype=jnp.float32) for n in shape)
  return jnp.stack(jnp.meshgrid(columns, rows), axis=-1)


def grid(
  unit: Float[Array, 'h w 2'],
  strength: float | jax.Array,
  rescale: float | jax.Array = 1.0,
) -> Grid:
  """Sampling points displaced by a field, none outside of the image.

  clip((I + s·B/h)·r, −1, 1): a unit displaces by about s/2 pixels.

  Args:
    unit: the field B.
    strength: s; 0 displaces nothing.
    rescale: r.

  Returns:
    The grid.
  """
  height, width, _ = unit.shape
  points = identity((height, width)) + strength * unit / height
  return jnp.clip(points * rescale, -1, 1)


def disturb(
  base: Grid, noise: Float[Array, 'b h w 2']
) -> Float[Array, 'b h w 2']:
  """Grids of which each point is moved on its own: clip(grid + u/h, −1, 1).

  Args:
    base: the grid that is disturbed.
    noise: u, in [−1, 1], which is up to half a pixel.

  Returns:
    float32 [b, h, w, 2], one grid per noise.
  """
  return jnp.clip(base[None] + noise / base.shape[0], -1, 1)


def warp(images: types.Images, grids: Float[Array, '#b h w 2']) -> types.Images:
  """Images read at the points of a grid, by bilinear interpolation.

  Args:
    images: float [b, h, w, c] in [0, 1].
    grids: one per image, or one for all.

  Returns:
    float [b, h, w, c] in [0, 1].
  """
  b, h, w, _ = images.shape
  grids = jnp.broadcast_to(grids, (b, *grids.shape[1:]))
  columns = (grids[..., 0] + 1) / 2 * (w - 1)
  rows = (grids[..., 1] + 1) / 2 * (h - 1)
  return jnp.clip(data.bilinear(images, rows, columns), 0, 1)
