"""Pictures of a user's own, such as a trigger to blend in."""

import os

import numpy as np


def read_picture(path: str | os.PathLike) -> np.ndarray:
  """Reads any picture PIL knows, or an .npy array.

  Args:
    path: the file.

  Returns:
    uint8 [H, W, 3] of a picture; an array as it was stored.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no picture.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no picture {os.fspath(path)}; give the path of a PNG, a JPEG '
      'or an .npy array of uint8.'
    )
  if os.fspath(path).endswith('.npy'):
    return np.load(path, allow_pickle=False)
  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(path) as picture:
      return np.asarray(picture.convert('RGB'), np.uint8)
  except UnidentifiedImageError as error:
    raise ValueError(
      f'{os.fspath(path)} is no picture PIL can read; convert it to PNG.'
    ) from error
