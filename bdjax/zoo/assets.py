"""Assets of attacks that were crafted once and are found again.

    <root>/assets/<digest>.npz    the arrays
    <root>/assets/<digest>.json   what they were made from

The digest is that of the recipe, so that it is known before anything is made.
The arrays' file is written last, whole, under its name by a rename.
"""

import io
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from bdjax.zoo import digest, files

_FOLDER = 'assets'


def name_of(recipe: Mapping[str, Any]) -> str:
  """The digest of a recipe, 16 hex digits."""
  return digest.digest(dict(recipe))


def digest_of(array: np.ndarray) -> str:
  """The digest of an array's shape, dtype and bytes, 16 hex digits.

  Args:
    array: of any size; unlike `digest.digest` it writes no number down.

  Returns:
    16 characters of 0–9 and a–f.
  """
  array = np.ascontiguousarray(array)
  content = files.sha256(array.tobytes())
  return digest.digest([array.shape, array.dtype.str, content])


def write(
  root: str | os.PathLike,
  recipe: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> str:
  """Keeps crafted arrays; replaces those of the same recipe.

  Args:
    root: the store.
    recipe: what they were made from, plain data.
    arrays: {name: array}.

  Returns:
    The recipe's digest.

  Raises:
    TypeError: if the recipe is not plain data, or an array holds objects.
  """
  root, name = pathlib.Path(root).absolute(), name_of(recipe)
  files.make_folder(root / _FOLDER, root)
  parts = {
    'json': files.to_json(digest.plain(dict(recipe))),
    'npz': files.to_npz(arrays),
  }
  for suffix, content in parts.items():
    target = root / _FOLDER / f'{name}.{suffix}'
    temporary = files.sibling(target)
    try:
      files.write_bytes(temporary, content)
      os.replace(temporary, target)
    finally:
      temporary.unlink(missing_ok=True)
  files.sync(root / _FOLDER)
  return name


def read(root: str | os.PathLike, name: str) -> dict[str, np.ndarray] | None:
  """Reads crafted arrays.

  Args:
    root: the store.
    name: a recipe's digest.

  Returns:
    {name: array}, None where they have not been made.

  Raises:
    CorruptArtefactError: if the file is damaged.

  Example:
    >>> import tempfile
    >>> root = tempfile.mkdtemp()
    >>> name = write(root, {'of': 'lf'}, {'pattern': np.ones(2)})
    >>> read(root, name)['pattern'].tolist(), read(root, '0123456789abcdef')
    ([1.0, 1.0], None)
  """
  path = pathlib.Path(root) / _FOLDER / f'{name}.npz'
  if not path.is_file():
    return None
  try:
    content = io.BytesIO(path.read_bytes())
    with np.load(content, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}
  except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
    raise files.CorruptArtefactError(
      f'The asset {path} is damaged ({error}); delete it, and it is crafted '
      'again.'
    ) from error


def recipe(root: str | os.PathLike, name: str) -> dict[str, Any]:
  """What arrays that were written were made from."""
  path = pathlib.Path(root) / _FOLDER / f'{name}.json'
  return json.loads(path.read_bytes())
