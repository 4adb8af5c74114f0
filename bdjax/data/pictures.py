"""Pictures of a user's own, such as a trigger to blend in."""

import os

import numpy as np


def read_picture(
  path: str | os.PathLike, name: str | None = None
) -> np.ndarray:
  """Reads any picture PIL knows, an .npy array or one array of an .npz file.

  Args:
    path: the file.
    name: which array of an .npz file that holds several.

  Returns:
    uint8 [H, W, 3] of a picture; an array as it was stored.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is no picture, or an .npz file that does not have the
      array.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no picture {os.fspath(path)}; give the path of a PNG, a JPEG '
      'or an .npy or .npz file of arrays.'
    )
  if os.fspath(path).endswith('.npy'):
    return np.load(path, allow_pickle=False)
  if os.fspath(path).endswith('.npz'):
    return _one_of(path, name)
  from PIL import Image, UnidentifiedImageError

  try:
    with Image.open(path) as picture:
      return np.asarray(picture.convert('RGB'), np.uint8)
  except UnidentifiedImageError as error:
    raise ValueError(
      f'{os.fspath(path)} is no picture PIL can read; convert it to PNG.'
    ) from error


def _one_of(path: str | os.PathLike, name: str | None) -> np.ndarray:
  """The array of that name, or the only one there is."""
  with np.load(path, allow_pickle=False) as arrays:
    if name not in arrays.files and len(arrays.files) != 1:
      raise ValueError(
        f"{os.fspath(path)} has no array '{name}' but {arrays.files}; rename "
        'the one that is meant, or save it alone.'
      )
    return arrays[name if name in arrays.files else arrays.files[0]]
