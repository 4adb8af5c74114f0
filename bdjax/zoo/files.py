"""Durable files: temporary siblings, fsync, rename.

Nothing becomes visible under its own name before all of it is on the disk.
What a killed writer leaves behind is called `.tmp-…`, is ignored by every
reader, and is removed when the same thing is written again.
"""

import errno
import hashlib
import io
import json
import os
import pathlib
import platform
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

TEMPORARY = '.tmp-'
_FOREIGN_AGE = 24 * 3600  # seconds another host's leftover is left alone
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class CorruptArtefactError(RuntimeError):
  """Something on disk was truncated, edited or half deleted."""


def sync(path: pathlib.Path) -> None:
  """Forces one file or folder to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def sync_tree(folder: pathlib.Path) -> None:
  """Forces a folder and everything below it to the disk, contents first."""
  for base, _, names in os.walk(folder, topdown=False):
    for name in names:
      sync(pathlib.Path(base, name))
    sync(pathlib.Path(base))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a new file and forces it to the disk."""
  with path.open('xb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def to_json(value: Any) -> bytes:
  """Readable JSON: indented, keys in the given order."""
  return (json.dumps(value, indent=2, allow_nan=False) + '\n').encode()


def to_npz(arrays: Mapping[str, Any]) -> bytes:
  """The content of an .npz file with named arrays.

  Raises:
    TypeError: for arrays of Python objects.
  """
  host = {k: np.asarray(jax.device_get(v)) for k, v in arrays.items()}
  for name, array in host.items():
    if array.dtype.kind in 'OV':
      raise TypeError(
        f'`{name}` has dtype {array.dtype}, which NumPy files do not hold; '
        'convert it to float32 first.'
      )
  buffer = io.BytesIO()
  # By hand, as np.savez has no room for arrays named 'file'.
  with zipfile.ZipFile(buffer, 'w') as archive:
    for name, array in host.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
  return buffer.getvalue()


def sha256(content: bytes) -> str:
  """SHA-256, 64 hex digits."""
  return hashlib.sha256(content).hexdigest()


def make_folder(path: pathlib.Path, root: pathlib.Path) -> None:
  """Makes a folder and forces its entry, and those above it, to the disk."""
  path.mkdir(parents=True, exist_ok=True)
  while path != root and path != path.parent:
    sync(path)
    path = path.parent
  sync(path)


def sibling(target: pathlib.Path) -> pathlib.Path:
  """A fresh temporary name beside a target; tells who is writing it."""
  owner = f'{_host()}-{os.getpid()}-{secrets.token_hex(4)}'
  return target.with_name(f'{TEMPORARY}{target.name}-{owner}')


def publish(
  temporary: pathlib.Path,
  target: pathlib.Path,
  *,
  force: bool,
  is_complete: Callable[[pathlib.Path], bool],
) -> None:
  """Gives a finished temporary folder its name.

  Where the target is taken, a complete one wins and ours is dropped, unless
  `force`; otherwise the old one is renamed aside, ours renamed in, and the old
  one deleted. Between these two renames there is no target: a writer killed
  there leaves nothing under the name, never a mixture.

  Args:
    temporary: complete and already forced to the disk.
    target: its name.
    force: replaces a complete target.
    is_complete: tells whether a folder is a finished one.
  """
  old = None
  while True:
    try:
      os.rename(temporary, target)
      break
    except OSError as error:
      if error.errno not in _TAKEN:
        raise
    if not force and is_complete(target):
      shutil.rmtree(temporary)
      break
    old = sibling(target)
    try:
      os.rename(target, old)
    except FileNotFoundError:  # another writer moved it first
      old = None
  sync(target.parent)
  if old is not None:
    shutil.rmtree(old, ignore_errors=True)


def sweep_leftovers(target: pathlib.Path) -> None:
  """Removes what killed writers of this target left beside it."""
  for path in target.parent.glob(f'{TEMPORARY}{target.name}-*'):
    if _is_abandoned(path):
      shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
  return sha256(platform.node().encode())[:8]


def _is_abandoned(path: pathlib.Path) -> bool:
  """Whether nobody is writing there: its process is gone, or it is old."""
  *_, host, pid, _ = path.name.rsplit('-', 3)
  if host == _host() and pid.isdecimal():
    try:
      os.kill(int(pid), 0)  # signal 0 only asks whether the process lives
    except ProcessLookupError:
      return True
    except OSError:
      pass
    return False
  try:
    return time.time() - path.stat().st_mtime > _FOREIGN_AGE
  except FileNotFoundError:
    return False
