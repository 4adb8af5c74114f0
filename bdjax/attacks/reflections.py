"""Reflections: a pool of drawn scenes, in place of photographs.

Nothing is read: pictures of a user's own arrive as arrays in `assets`.
"""

import functools

import numpy as np

from bdjax import checks
from bdjax.attacks import pictures

_CANVAS = 96  # scenes are drawn large and scaled down: anti-aliasing


def fit_all(pool: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
  """Scales pictures to the images' shape (bilinear, anti-aliased).

  Args:
    pool: uint8 [n, H, W, 3] of any size, or [n, H, W].
    image_shape: (h, w, c), c = 1 or 3.

  Returns:
    uint8 [n, h, w, c].

  Raises:
    TypeError: if the pictures are not uint8.
    ValueError: if there are none, or they are no pictures.
  """
  pool = np.asarray(pool)
  if pool.ndim not in (3, 4) or not len(pool):
    raise ValueError(
      f'`reflections` has shape {pool.shape}; expected [n, H, W, 3], at least '
      'one picture (stack them with np.stack).'
    )
  return np.stack([pictures.fit(picture, image_shape) for picture in pool])


@functools.lru_cache(maxsize=4)
def draw(
  num: int, image_shape: tuple[int, int, int], seed: int = 0
) -> np.ndarray:
  """Scenes: a graded sky and ground, buildings, balls and lamps.

  Like photographs they are mostly smooth, with a few strong edges and lights;
  the drawn ones are kept, so that a second call costs nothing.

  Args:
    num: number of pictures; fewer are the first of more.
    image_shape: (h, w, c).
    seed: of all of them.

  Returns:
    uint8 [num, h, w, c], read-only.

  Raises:
    ValueError: if `num` is not positive.
  """
  checks.positive(num=num)
  scenes = [_scene(np.random.default_rng((seed, i))) for i in range(num)]
  pool = fit_all(np.stack(scenes), image_shape)
  pool.setflags(write=False)
  return pool


def _scene(rng: np.random.Generator) -> np.ndarray:
  """One scene, uint8 [_CANVAS, _CANVAS, 3]."""
  from PIL import Image, ImageDraw

  scene = Image.fromarray(_background(rng))
  pen = ImageDraw.Draw(scene)
  for _ in range(rng.integers(2, 6)):
    _draw_building(pen, rng)
  for _ in range(rng.integers(1, 5)):
    _draw_disk(pen, rng, rng.uniform(0.05, 0.2), _color(rng, 0, 255))
  for _ in range(rng.integers(1, 4)):
    _draw_disk(pen, rng, rng.uniform(0.02, 0.08), _color(rng, 220, 255))
  return np.asarray(scene)


def _background(rng: np.random.Generator) -> np.ndarray:
  """Sky and ground: two gradients that meet at a horizon."""
  horizon = int(rng.uniform(0.4, 0.8) * _CANVAS)
  sides = [(horizon, 90, 255), (_CANVAS - horizon, 20, 160)]
  return np.concatenate([_gradient(rng, *side) for side in sides])


def _gradient(
  rng: np.random.Generator, rows: int, low: int, high: int
) -> np.ndarray:
  """Four random corner colors, bilinear between; uint8 [rows, _CANVAS, 3]."""
  corners = rng.uniform(low, high, (2, 2, 3))
  down, across = np.linspace(0, 1, rows), np.linspace(0, 1, _CANVAS)
  weights = lambda t: np.stack([1 - t, t], -1)
  mixed = np.einsum('yi,xj,ijc->yxc', weights(down), weights(across), corners)
  return mixed.astype(np.uint8)


def _draw_building(pen, rng: np.random.Generator) -> None:
  """A rectangle that stands on the lower edge, with rows of windows."""
  left, top = (rng.uniform((0, 0.15), (0.85, 0.7)) * _CANVAS).astype(int)
  width = int(rng.uniform(0.1, 0.35) * _CANVAS)
  pen.rectangle((left, top, left + width, _CANVAS), fill=_color(rng, 0, 200))
  side, light = rng.integers(3, 8), _color(rng, 120, 255)
  for x in range(left + 2, left + width - side, 2 * side):
    for y in range(top + 2, _CANVAS - side, 2 * side):
      pen.rectangle((x, y, x + side, y + side), fill=light)


def _draw_disk(pen, rng: np.random.Generator, radius: float, color) -> None:
  """A disk anywhere; its radius is a fraction of the canvas."""
  x, y = rng.uniform(0, _CANVAS, 2)
  r = radius * _CANVAS
  pen.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _color(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
  """Red, green and blue, each between two levels."""
  return tuple(rng.integers(low, high + 1, 3).tolist())
