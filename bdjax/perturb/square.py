"""Square search: proposals for finding a perturbation without gradients.

A random search keeps one perturbation Δ and proposes, query by query, another
one that differs in square windows whose side shrinks as the budget is spent.
Whether a proposal is kept is the caller's business. In L∞ every Δ has entries
±eps, in L2 every Δ has norm eps: all that is ever proposed is in the ball.

Every rule has two forms: one that takes a key, and below it one that takes the
draws themselves. Sides may be traced, a whole schedule is one program.

References:
  Andriushchenko et al., Square Attack: a query-efficient black-box adversarial
  attack via random search, ECCV 2020.
  JulieCarlon/Backdoor-Reactivation-Attack:
  utils/reattack_utils/square_attack.py
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks
from bdjax.perturb import square_windows as windows

_TILES = 5  # the L2 start has tiles of a fifth of the image
_TINY = 1e-12


class SquareSearch(NamedTuple):
  """A start and the proposals that follow it.

  Attributes:
    start: key -> perturbation [h, w, c].
    propose: (key, perturbation, i) -> perturbation; i, from 0, counts the
      proposals and may be traced.
    sides: int [num_queries], side of the windows of proposal i.
  """

  start: Callable[[jax.Array], jax.Array]
  propose: Callable[[jax.Array, jax.Array, jax.Array | int], jax.Array]
  sides: np.ndarray


def square_search(
  shape: tuple[int, int, int],
  num_queries: int,
  *,
  eps: float | jax.Array,
  norm: windows.SquareNorm,
  p_start: float = 0.1,
  legacy_window_range: bool = False,
) -> SquareSearch:
  """The square search of one budget.

  Guarantees:  - L∞: entries are ±eps, a proposal differs from what it was made
                 of inside its window and nowhere else.
               - L2: the norm is eps up to rounding.

  Args:
    shape: (h, w, c).
    num_queries: the budget, which stretches the schedule.
    eps: radius in [0, 1] units, may be traced.
    norm: 'linf' | 'l2'.
    p_start: share of the image in the first windows.
    legacy_window_range: windows as in the released code, which never reach
      the last row and column.

  Returns:
    The search.

  Raises:
    ValueError: for another norm, a budget in 0–255 units, a share outside
      (0, 1] or an image that is smaller than the smallest window.
  """
  checks.pixel_budget(norm, eps=eps)
  fractions = windows.window_fractions(num_queries, p_start)
  sides = windows.window_sides(fractions, shape[:2], norm)

  def start(key):
    return draw_start(key, shape, eps, norm)

  if norm == 'linf':

    def propose(key, delta, i):
      side = jnp.asarray(sides)[i]
      return linf_candidate(key, delta, side, eps, legacy_window_range)

    return SquareSearch(start, propose, sides)

  bumps, which = windows.bump_table(sides)

  def propose_l2(key, delta, i):
    side, row = jnp.asarray(sides)[i], jnp.asarray(which)[i]
    bump = jnp.asarray(bumps)[row]
    return l2_candidate(key, delta, side, bump, eps, legacy_window_range)

  return SquareSearch(start, propose_l2, sides)


def draw_start(
  key: jax.Array,
  shape: tuple[int, int, int],
  eps: float | jax.Array,
  norm: windows.SquareNorm,
) -> jax.Array:
  """A random start: stripes in L∞, tiles in L2.

  Args:
    key: typed key.
    shape: (h, w, c).
    eps: radius in [0, 1] units, may be traced.
    norm: 'linf' | 'l2'.

  Returns:
    float32 [h, w, c].

  Raises:
    TypeError: if the key is not typed.
    ValueError: for another norm.
  """
  checks.typed_key(key=key)
  checks.one_of(windows.SQUARE_NORMS, norm=norm)
  h, w, c = shape
  if norm == 'linf':
    signs = jax.random.rademacher(key, (w, c), jnp.float32)
    return stripes(signs, h, eps)
  key, flip_key = jax.random.split(key)
  grid = tile_grid((h, w))
  signs = jax.random.rademacher(key, (*grid, c), jnp.float32)
  return tiles(signs, jax.random.bernoulli(flip_key, 0.5, grid), (h, w), eps)


def stripes(signs: jax.Array, height: int, eps: float | jax.Array) -> jax.Array:
  """±eps, constant along columns.

  Args:
    signs: ±1, [w, c].
    height: rows.
    eps: may be traced.

  Returns:
    [height, w, c].
  """
  return jnp.broadcast_to((eps * signs)[None], (height, *signs.shape))


def tile_grid(size: tuple[int, int]) -> tuple[int, int]:
  """Rows and columns of tiles in the L2 start; 5×5 for 32×32 and 64×64."""
  side = _tile_side(size)
  return size[0] // side, size[1] // side


def tiles(
  signs: jax.Array,
  transposed: jax.Array,
  size: tuple[int, int],
  eps: float | jax.Array,
) -> jax.Array:
  """Square bumps side by side, of norm eps together.

  Tiles have a fifth of the image's side, rounded down, at least one pixel: an
  image below 10×10 starts from single pixels of one size and random sign.

  Args:
    signs: ±1, [rows, columns, c], of `tile_grid`.
    transposed: bool [rows, columns], whether a tile's bump is transposed.
    size: (h, w).
    eps: may be traced.

  Returns:
    [h, w, c], zero in the margin that no tile covers.
  """
  side, (rows, cols, c) = _tile_side(size), signs.shape
  bump = jnp.asarray(windows.square_bump(side), signs.dtype)
  turned = jnp.where(transposed[:, :, None, None], bump.T, bump)
  # From [row, column, y, x, c] to an image.
  image = turned[..., None] * signs[:, :, None, None]
  image = image.transpose(0, 2, 1, 3, 4).reshape(rows * side, cols * side, c)
  margin = [(n - m) // 2 for n, m in zip(size, image.shape, strict=False)]
  full = jnp.zeros((*size, c), signs.dtype)
  full = jax.lax.dynamic_update_slice(full, image, (*margin, 0))
  return _on_sphere(full, eps)


def linf_candidate(
  key: jax.Array,
  delta: jax.Array,
  side: int | jax.Array,
  eps: float | jax.Array,
  legacy_window_range: bool = False,
) -> jax.Array:
  """Another content of one random window: ±eps, one sign per channel.

  The signs are drawn uniformly from those that change something, which is what
  drawing until something changes does. There are 2^c of them.

  Args:
    key: typed key.
    delta: entries ±eps, [h, w, c].
    side: of the window, may be traced.
    eps: radius in [0, 1] units, may be traced.
    legacy_window_range: see `square_search`.

  Returns:
    [h, w, c].
  """
  corner_key, sign_key = jax.random.split(key)
  h, w, c = delta.shape
  corner = draw_corner(corner_key, (h, w), side, legacy_window_range)
  choices = np.stack(np.meshgrid(*[(-1, 1)] * c, indexing='ij'), -1)
  choices = jnp.asarray(choices.reshape(-1, c), delta.dtype)
  changes = _changes(delta, window(corner, side, (h, w)), choices)
  draw = jax.random.uniform(sign_key, changes.shape)
  signs = choices[jnp.argmax(jnp.where(changes, draw, -1))]
  return write_window(delta, corner, side, signs, eps)


def write_window(
  delta: jax.Array,
  corner: jax.Array,
  side: int | jax.Array,
  signs: jax.Array,
  eps: float | jax.Array,
) -> jax.Array:
  """Overwrites one window by ±eps; `linf_candidate` with given draws.

  Args:
    delta: [h, w, c].
    corner: int [2], first row and column.
    side: may be traced.
    signs: ±1, [c].
    eps: may be traced.

  Returns:
    [h, w, c].
  """
  h, w, _ = delta.shape
  inside = window(corner, side, (h, w))[..., None]
  return jnp.where(inside, (eps * signs)[None, None], delta)


def l2_candidate(
  key: jax.Array,
  delta: jax.Array,
  side: int | jax.Array,
  bump: jax.Array,
  eps: float | jax.Array,
  legacy_window_range: bool = False,
) -> jax.Array:
  """Moves what is in one random window to another one, in a new shape.

  Args:
    key: typed key.
    delta: [h, w, c].
    side: of both windows, may be traced.
    bump: the square bump of that side, padded with zeros; it is transposed
      with probability ½.
    eps: radius in [0, 1] units, may be traced.
    legacy_window_range: see `square_search`.

  Returns:
    [h, w, c].
  """
  keys = jax.random.split(key, 4)
  h, w, c = delta.shape
  corner, emptied = (
    draw_corner(k, (h, w), side, legacy_window_range) for k in keys[:2]
  )
  signs = jax.random.rademacher(keys[2], (c,), delta.dtype)
  bump = jnp.asarray(bump, delta.dtype)
  bump = jnp.where(jax.random.bernoulli(keys[3]), bump.T, bump)
  return move_window(delta, corner, emptied, side, bump, signs, eps)


def move_window(
  delta: jax.Array,
  corner: jax.Array,
  emptied: jax.Array,
  side: int | jax.Array,
  bump: jax.Array,
  signs: jax.Array,
  eps: float | jax.Array,
) -> jax.Array:
  """Empties one window in favor of another; `l2_candidate` with given draws.

  Per channel, with W₁ the window at `corner`, W₂ that at `emptied`, B the bump:

    u  = ±B + Δ[W₁] / (1e-10 + ‖Δ[W₁]‖)
    u ← u/‖u‖ · √( max(eps² − ‖Δ‖², 0)/c + ‖Δ[W₁ ∪ W₂]‖² )

  W₂ is set to 0, then W₁ to u, and all is scaled to norm eps.

  Args:
    delta: [h, w, c].
    corner: int [2], first row and column of W₁.
    emptied: int [2], those of W₂.
    side: of both, may be traced.
    bump: [s, s] with s ≥ side, zero beyond `side`.
    signs: ±1, [c].
    eps: may be traced.

  Returns:
    [h, w, c].
  """
  h, w, c = delta.shape
  first = window(corner, side, (h, w))[..., None]
  second = window(emptied, side, (h, w))[..., None]
  inside = jnp.where(first, delta, 0)
  u = _place(bump, corner, (h, w))[..., None] * signs[None, None]
  u = u + inside / (1e-10 + _length(inside))
  unused = jnp.maximum(eps**2 - jnp.sum(delta**2), 0) / c
  both = _length(jnp.where(first | second, delta, 0))
  u = u / jnp.maximum(_length(u), _TINY) * jnp.sqrt(unused + both**2)
  moved = jnp.where(first, u, jnp.where(second, 0, delta))
  return _on_sphere(moved, eps)


def draw_corner(
  key: jax.Array,
  size: tuple[int, int],
  side: int | jax.Array,
  legacy_window_range: bool = False,
) -> jax.Array:
  """First row and column of a window, uniform.

  Args:
    key: typed key.
    size: (h, w).
    side: may be traced.
    legacy_window_range: leaves out the last row and the last column.

  Returns:
    int32 [2].
  """
  places = jnp.asarray(size) - side + (0 if legacy_window_range else 1)
  return jax.random.randint(key, (2,), 0, jnp.maximum(places, 1))


def window(
  corner: jax.Array, side: int | jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Where a window is, bool [h, w].

  Args:
    corner: int [2], first row and column.
    side: may be traced.
    size: (h, w).

  Returns:
    bool [h, w].
  """
  row, col = (
    (jnp.arange(n) >= first) & (jnp.arange(n) < first + side)
    for n, first in zip(size, corner, strict=True)
  )
  return row[:, None] & col[None]


def _tile_side(size):
  """A fifth of the shorter side, at least one pixel."""
  return max(min(size) // _TILES, 1)


def _changes(delta, inside, choices):
  """Which of the sign vectors [k, c] change something, bool [k]."""
  touched = inside[..., None]
  has_not = {
    sign: jnp.any(touched & (sign * delta <= 0), axis=(0, 1))
    for sign in (-1, 1)
  }
  per_channel = jnp.where(choices > 0, has_not[1][None], has_not[-1][None])
  return jnp.any(per_channel, axis=-1)


def _place(bump, corner, size):
  """A padded bump on an empty canvas [h, w]."""
  s = bump.shape[0]
  canvas = jnp.zeros((size[0] + s, size[1] + s), bump.dtype)
  canvas = jax.lax.dynamic_update_slice(canvas, bump, tuple(corner))
  return canvas[: size[0], : size[1]]


def _length(x):
  """L2 norm of every channel, [1, 1, c]."""
  return jnp.sqrt(jnp.sum(x**2, axis=(0, 1), keepdims=True))


def _on_sphere(delta, eps):
  """Scaled to norm eps."""
  return delta * (eps / jnp.maximum(jnp.sqrt(jnp.sum(delta**2)), _TINY))
