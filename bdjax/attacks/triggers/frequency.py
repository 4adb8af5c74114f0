"""Frequencies: patterns that are single coefficients of a block-wise DCT.

The transform is linear, so that adding to coefficients and transforming back is
adding one fixed pattern; none is needed at run time.
"""

from collections.abc import Sequence

import numpy as np

from bdjax import checks

CHANNELS = (0, 1, 2)  # of luma and chroma


def dct_basis(size: int) -> np.ndarray:
  """The orthonormal DCT-II.

  Args:
    size: length of the signal, in samples.

  Returns:
    float64 [size, size]; row u holds the wave of frequency u, so that
    `basis @ x` is the transform of x and `basis.T` its inverse.
  """
  n = np.arange(size)
  basis = np.cos((2 * n + 1)[None] * n[:, None] * np.pi / (2 * size))
  basis *= np.sqrt(2 / size)
  basis[0] /= np.sqrt(2)
  return basis


def block_pattern(
  shape: tuple[int, int],
  window: int,
  positions: Sequence[tuple[int, int]],
) -> np.ndarray:
  """What adding 1 to the named coefficients of every block adds to an image.

  Args:
    shape: (h, w) of the image, multiples of the window.
    window: side of the blocks in pixels.
    positions: (row, column) of each coefficient, within the window.

  Returns:
    float64 [h, w]; its squares sum to the number of positions in each block.

  Raises:
    ValueError: if the blocks do not fill the image, or a position lies outside
      of them, is named twice or there is none.
  """
  checks.positive(window=window)
  if any(side % window for side in shape):
    raise ValueError(
      f'`window={window}` does not divide images of {shape[0]}×{shape[1]} into '
      'blocks; choose a divisor of both sides.'
    )
  coefficients = np.zeros((window, window))
  for position in positions:
    _check_position(position, window)
    coefficients[tuple(position)] = 1
  if not 0 < len(positions) == coefficients.sum():
    raise ValueError(
      f'`positions={tuple(positions)}` must name at least one coefficient and '
      'none twice.'
    )
  basis = dct_basis(window)
  block = basis.T @ coefficients @ basis
  return np.tile(block, (shape[0] // window, shape[1] // window))


def channel_pattern(
  image_shape: tuple[int, int, int],
  window: int,
  positions: Sequence[tuple[int, int]],
  channels: Sequence[int],
) -> np.ndarray:
  """`block_pattern` in some of the three channels of a color space.

  Images smaller than the window are one block each, whose positions oscillate
  as fast per pixel.

  Args:
    image_shape: (h, w, 3).
    window: side of the blocks in pixels.
    positions: (row, column) of each coefficient in a block of `window`.
    channels: which of the three carry the pattern.

  Returns:
    float64 [h, w, 3].

  Raises:
    ValueError: as `block_pattern`, or for images or channels other than the
      three.
  """
  height, width, num_channels = image_shape
  if num_channels != len(CHANNELS):
    raise ValueError(
      'The trigger changes the chroma of color images, and `image_shape='
      f'{image_shape}` has {num_channels} channel(s) in place of 3; '
      'repeat grey images three times.'
    )
  for channel in channels:
    checks.one_of(CHANNELS, channels=channel)
  size = min(window, height, width)
  scaled = [scale_position(position, window, size) for position in positions]
  plane = block_pattern((height, width), size, scaled)
  return plane[..., None] * np.isin(CHANNELS, channels)


def scale_position(
  position: tuple[int, int], window: int, size: int
) -> tuple[int, int]:
  """A coefficient of a smaller block that oscillates as fast per pixel.

  Args:
    position: (row, column) in a block of `window`.
    window: side of that block.
    size: side of the smaller one.

  Returns:
    (row, column), the highest frequency again being the highest.

  Raises:
    ValueError: if the position lies outside of the block, or a side is not
      positive.
  """
  checks.positive(window=window, size=size)
  _check_position(position, window)
  row, column = (max(round((u + 1) * size / window) - 1, 0) for u in position)
  return row, column


def _check_position(position: Sequence[int], window: int) -> None:
  """Refuses what is no coefficient of a block."""
  if len(position) != 2 or not all(0 <= u < window for u in position):
    raise ValueError(
      f'The position {tuple(position)} in `positions` is no pair of '
      f'frequencies below `window={window}`.'
    )
