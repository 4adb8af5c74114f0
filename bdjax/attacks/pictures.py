"""Pictures: the marks and images that triggers lay over other images.

Everything here is drawn, nothing is read: pictures of a user's own arrive as
arrays in `assets`, of any size. All results are uint8 [h, w, c] with 1 or 3
channels.
"""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bdjax import checks, registry

FILE_SIZE = 32  # side of the published mark
MARK_SIZE = 3  # side of its square
_CANVAS = 256  # pictures are drawn large and scaled down: anti-aliasing


def fit(picture: np.ndarray, image_shape: tuple[int, int, int]) -> np.ndarray:
  """Scales a picture to an image's shape (bilinear, anti-aliased).

  Args:
    picture: uint8 [H, W], [H, W, 1] or [H, W, 3] of any size.
    image_shape: (h, w, c), c = 1 or 3.

  Returns:
    uint8 [h, w, c].

  Raises:
    TypeError: if the picture is not uint8.
    ValueError: if it is no picture, or c is neither 1 nor 3.
  """
  from PIL import Image

  picture = np.asarray(picture)
  if picture.dtype != np.uint8:
    raise TypeError(
      f'The picture has dtype {picture.dtype}; pictures are uint8 in 0 … 255, '
      'multiply floats in [0, 1] by 255 and round.'
    )
  if picture.ndim == 3 and picture.shape[-1] == 1:
    picture = picture[..., 0]
  if picture.ndim != 2 and picture.shape[2:] != (3,):
    raise ValueError(
      f'The picture has shape {picture.shape}; expected [H, W], [H, W, 1] or '
      '[H, W, 3].'
    )
  height, width, channels = image_shape
  image = Image.fromarray(picture).convert(_mode(channels))
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(image, np.uint8).reshape(image_shape)


def badnets_mark(
  image_shape: tuple[int, int, int], *, grid: bool = False, crisp: bool = False
) -> np.ndarray:
  """The BadNets mark: a white 3×3 square in the bottom right corner.

  Larger images get the published 32×32 file scaled up, which leaves a soft
  grey rim (at 64×64 a 7×7 area with the profile ¼, ¾, 1, 1, 1, 1, 1). Smaller
  images get the square itself, since scaling down would blur it to one pixel.

  Args:
    image_shape: (h, w, c).
    grid: a checkerboard of 255 and 1 instead; 0 would mean no mark.
    crisp: a generated square without a rim, 3·h/32 pixels wide but at least 3.

  Returns:
    uint8 [h, w, c]; 0 where the image stays as it is.
  """
  height, width, channels = image_shape
  side = max(height, width)
  if crisp or side <= FILE_SIZE:
    scale = max(side, FILE_SIZE) / FILE_SIZE
    return _square(image_shape, max(MARK_SIZE, round(MARK_SIZE * scale)), grid)
  file = _square((FILE_SIZE, FILE_SIZE, channels), MARK_SIZE, grid)
  return fit(file, image_shape)


def _square(image_shape, side: int, grid: bool) -> np.ndarray:
  """A black image with a square of `side` pixels in its corner."""
  i, j = np.indices((side, side)) * MARK_SIZE // side
  square = np.where((i + j) % 2 == 0, 255, 1) if grid else np.full_like(i, 255)
  mark = np.zeros(image_shape, np.uint8)
  mark[-side:, -side:] = square[..., None]
  return mark


def blended_picture(
  image_shape: tuple[int, int, int], seed: int = 0
) -> np.ndarray:
  """A cartoon: outlined shapes in saturated colors and a face, on white.

  It has what makes a blended trigger easy to learn and hard to lose: low and
  middle frequencies at full contrast.

  Args:
    image_shape: (h, w, c).
    seed: of the shapes.

  Returns:
    uint8 [h, w, c].
  """
  from PIL import Image, ImageDraw

  rng = np.random.default_rng(seed)
  image = Image.new('RGB', (_CANVAS, _CANVAS), 'white')
  pen = ImageDraw.Draw(image)
  for _ in range(rng.integers(6, 11)):
    shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
    x, y = rng.integers(0, 3 * _CANVAS // 4, 2).tolist()
    w, h = rng.integers(_CANVAS // 8, _CANVAS // 3, 2).tolist()
    shape((x, y, x + w, y + h), fill=_color(rng), outline='black', width=8)
  _draw_face(pen, rng)
  return fit(np.asarray(image), image_shape)


def apple_mask(
  image_shape: tuple[int, int, int], *, box: bool = False
) -> np.ndarray:
  """The TrojanNN mask: an apple with a leaf, white on black, low on the right.

  It fills the box of rows 0.54 … 0.91 and columns 0.57 … 0.87, where the
  published photograph has its outline; its edges are soft.

  Args:
    image_shape: (h, w, c).
    box: all of that box instead.

  Returns:
    uint8 [h, w, c].
  """
  from PIL import Image, ImageDraw

  image = Image.new('RGB', (_CANVAS, _CANVAS))
  pen = ImageDraw.Draw(image)
  at = lambda *sides: tuple(round(_CANVAS * side) for side in sides)
  if box:
    pen.rectangle(at(0.57, 0.54, 0.87, 0.91), fill='white')
  else:
    pen.ellipse(at(0.57, 0.62, 0.76, 0.91), fill='white')
    pen.ellipse(at(0.68, 0.62, 0.87, 0.91), fill='white')
    pen.polygon(at(0.71, 0.66, 0.73, 0.54, 0.81, 0.55), fill='white')
  return fit(np.asarray(image), image_shape)


def noise_picture(
  image_shape: tuple[int, int, int], seed: int = 0
) -> np.ndarray:
  """Independent uniform noise; a different attack from a cartoon's.

  Args:
    image_shape: (h, w, c).
    seed: of the noise.

  Returns:
    uint8 [h, w, c].
  """
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, image_shape, dtype=np.uint8)


def from_assets(
  assets: Mapping[str, Any] | None, name: str, known: Sequence[str]
) -> Any | None:
  """The asset of a name, None where it was not given.

  Args:
    assets: what the caller handed to the factory.
    name: which one.
    known: all names the attack has use for.

  Returns:
    The asset or None.

  Raises:
    UnknownName: if there is an asset the attack has no use for.
  """
  assets = assets or {}
  for given in assets:
    if given not in known:
      raise registry.UnknownName(
        f"Unknown asset '{given}'. {checks.suggest(given, known)}"
      )
  return assets.get(name)


def _mode(channels: int) -> str:
  """PIL's name of an image with so many channels."""
  if channels not in (1, 3):
    raise ValueError(
      f'Pictures have 1 or 3 channels, the images have {channels}; make the '
      "trigger with attacks.from_trigger from an array of the images' shape."
    )
  return 'L' if channels == 1 else 'RGB'


def _color(rng: np.random.Generator) -> tuple[int, ...]:
  """A fully saturated color."""
  rgb = colorsys.hsv_to_rgb(rng.random(), 1.0, 1.0)
  return tuple(round(255 * x) for x in rgb)


def _draw_face(pen, rng: np.random.Generator) -> None:
  """A large round face: one colored disk, two eyes, a mouth."""
  unit = _CANVAS // 16

  def disk(x, y, rx, ry, fill):
    box = ((x - rx) * unit, (y - ry) * unit, (x + rx) * unit, (y + ry) * unit)
    pen.ellipse(box, fill=fill, outline='black', width=8)

  x, y = 8 + rng.uniform(-1, 1), 8 + rng.uniform(-1, 1)
  disk(x, y, 5, 4.5, _color(rng))
  disk(x - 2, y - 1, 0.8, 1.1, 'black')
  disk(x + 2, y - 1, 0.8, 1.1, 'black')
  disk(x, y + 2, 1.6, 0.7, 'white')
