"""Decoded splits on disk: memory-mapped arrays that are whole or rebuilt.

A split is two .npy files and a manifest with their headers (shape and dtype),
sizes and digests. Each file is written under a temporary name, flushed to disk
and renamed, the manifest last; whatever does not agree with its manifest is
built again.

The digest covers the file's size and up to 256 blocks of 4 KiB spread evenly
over it, all of it where the file is small: enough to notice truncation, holes
and foreign files in constant time, not to find a single flipped bit.
"""

import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from bdjax.data import splits

_FORMAT = 1
_BLOCK, _NUM_BLOCKS = 4096, 256


def fetch(
  folder: pathlib.Path, stem: str, build: Callable[[], splits.Split]
) -> splits.Split:
  """Opens a cached split, building it first where it is absent or damaged.

  Args:
    folder: where the split's files lie.
    stem: their common name, such as 'train'.
    build: makes the split; called only if needed.

  Returns:
    The split with memory-mapped, read-only images.

  Raises:
    OSError: if the folder cannot be written to, naming the setting.
  """
  split = _open(folder, stem)
  if split is None:
    _save(folder, stem, build())
    split = _open(folder, stem)
  if split is None:
    raise OSError(f'{folder} changed while {stem} was being written to it.')
  return split


def _paths(folder: pathlib.Path, stem: str) -> dict[str, pathlib.Path]:
  return {k: folder / f'{stem}_{k}.npy' for k in ('images', 'labels')}


def _open(folder: pathlib.Path, stem: str) -> splits.Split | None:
  """The split if every file agrees with the manifest, else None."""
  paths = _paths(folder, stem)
  try:
    manifest = json.loads((folder / f'{stem}.json').read_text())
    found = {k: _fingerprint(p) for k, p in paths.items()}
  except (OSError, ValueError):
    return None
  # Nothing is parsed before its bytes are known to be ours.
  if manifest != {'format': _FORMAT, 'files': found}:
    return None
  images = np.load(paths['images'], mmap_mode='r')
  return splits.Split(images, np.load(paths['labels']))


def _fingerprint(path: pathlib.Path) -> dict[str, Any]:
  """Size, sampled digest, and the .npy header that tells shape and dtype."""
  size = path.stat().st_size
  digest = hashlib.sha256()
  starts = np.linspace(0, max(size - _BLOCK, 0), _NUM_BLOCKS, dtype=np.int64)
  with path.open('rb') as file:
    header = file.read(128)[10:].partition(b'\n')[0].strip()
    for start in starts:
      file.seek(int(start))
      digest.update(file.read(_BLOCK))
  return {
    'header': header.decode('latin1'),
    'size': size,
    'digest': digest.hexdigest(),
  }


def _save(folder: pathlib.Path, stem: str, split: splits.Split) -> None:
  """Writes arrays, then the manifest that makes them valid."""
  manifest = folder / f'{stem}.json'
  paths = _paths(folder, stem)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    for key, array in split._asdict().items():
      _replace(paths[key], lambda f, array=array: np.save(f, array))
    files = {k: _fingerprint(p) for k, p in paths.items()}
    text = json.dumps({'format': _FORMAT, 'files': files}, indent=1)
    _replace(manifest, lambda f: f.write(text.encode()))
  except OSError as error:
    raise OSError(
      f'Cannot write the cache of decoded images to {folder} ({error}); set '
      '`cache_dir` or $BDJAX_CACHE_DIR to a folder with enough free space.'
    ) from error


def _replace(path: pathlib.Path, write: Callable[[Any], Any]) -> None:
  """Writes a file so that its name never stands for half of it."""
  temporary = path.with_name(
    f'.{path.name}.{os.getpid()}-{secrets.token_hex(4)}'
  )
  try:
    with temporary.open('wb') as file:
      write(file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
