"""Windows of the square search: how large, and what is written into them.

All of it is known before the first query, so it is NumPy and static.

References:
  Andriushchenko et al., Square Attack: a query-efficient black-box adversarial
  attack via random search, ECCV 2020.
"""

from typing import Literal

import numpy as np

from bdjax import checks

SquareNorm = Literal['linf', 'l2']
SQUARE_NORMS = ('linf', 'l2')

# Queries, of 10,000, after which the windows' area is halved.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def window_fractions(num_queries: int, p_start: float = 0.1) -> np.ndarray:
  """Share of the image that the windows of each proposal cover.

  With j = ⌊10,000·i/num_queries⌋: p_start, halved after j = 10, 50, 200, 500,
  1000, 2000, 4000, 6000 and 8000.

  Args:
    num_queries: length of the schedule.
    p_start: in (0, 1].

  Returns:
    float64 [num_queries].

  Raises:
    ValueError: for a non-positive length or a share outside (0, 1].
  """
  checks.positive(num_queries=num_queries)
  checks.fraction(p_start=p_start)
  j = 10_000 * np.arange(num_queries, dtype=np.int64) // num_queries
  return p_start / 2.0 ** np.searchsorted(_HALVED_AFTER, j)


def window_sides(
  fractions: np.ndarray, size: tuple[int, int], norm: SquareNorm
) -> np.ndarray:
  """Sides of the square windows that cover shares of an image.

  s = √(p·h·w), rounded; L∞: at least 1, at most min(h, w) − 1; L2: at least 3
  and odd, an even one is enlarged, but never beyond the image.

  Args:
    fractions: [n].
    size: (h, w).
    norm: 'linf' | 'l2'.

  Returns:
    int32 [n].

  Raises:
    ValueError: for another norm or an image too small for any window.
  """
  checks.one_of(SQUARE_NORMS, norm=norm)
  smallest = {'linf': 2, 'l2': 3}[norm]
  if min(size) < smallest:
    raise ValueError(
      f'Square search in {norm} needs images of at least {smallest}×{smallest}'
      f', got {size[0]}×{size[1]}; smaller ones need a search by gradients.'
    )
  sides = np.rint(np.sqrt(fractions * size[0] * size[1])).astype(np.int32)
  if norm == 'linf':
    return np.clip(sides, 1, min(size) - 1)
  largest_odd = (min(size) - 1) // 2 * 2 + 1
  return np.clip(sides // 2 * 2 + 1, 3, largest_odd).astype(np.int32)


def rectangle_bump(height: int, width: int) -> np.ndarray:
  """A pyramid of unit L2 norm.

  With ρ the Chebyshev distance from cell (⌊height/2⌋, ⌊width/2⌋), and R the
  larger of these two numbers, a cell has Σ_{r=ρ}^{R} 1/(r+1)², scaled.

  Args:
    height: rows.
    width: columns.

  Returns:
    float64 [height, width].
  """
  center = height // 2, width // 2
  rows, cols = np.ogrid[:height, :width]
  distance = np.maximum(np.abs(rows - center[0]), np.abs(cols - center[1]))
  terms = 1 / np.arange(1, max(center) + 2) ** 2
  tails = np.cumsum(terms[::-1])[::-1]
  bump = tails[distance]
  return bump / np.linalg.norm(bump)


def square_bump(side: int) -> np.ndarray:
  """A positive pyramid above a negative one, of unit L2 norm together.

  The upper ⌊side/2⌋ rows are one rectangle's bump, the lower rows minus
  another's; side 1 is a single −1.

  Args:
    side: rows and columns.

  Returns:
    float64 [side, side].
  """
  upper = side // 2
  bump = -rectangle_bump(side - upper, side)
  if upper:
    bump = np.concatenate([rectangle_bump(upper, side), bump])
  return bump / np.linalg.norm(bump)


def bump_table(sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Square bumps of all sides of a schedule, padded with zeros.

  Args:
    sides: int [n].

  Returns:
    (float64 [k, s, s] with s the largest side, each bump in the upper left
    corner; int [n], which of them has the side).
  """
  distinct, which = np.unique(sides, return_inverse=True)
  largest = distinct[-1]
  padded = [np.pad(square_bump(side), (0, largest - side)) for side in distinct]
  return np.stack(padded), which
