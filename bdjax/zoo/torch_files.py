"""Files of `torch.save`, read without torch and without running anything.

Such a file is a zip of one pickle stream and one raw file per storage. The
stream is taken apart by an unpickler that knows a short list of names
(`torch_names`): ordered dictionaries, tensors and their storages, NumPy arrays
and numbers, PIL images. Each stands for a small maker of our own, so that a
stream can neither call nor change anything else. Whatever it asks for beyond
the list is refused by name.
"""

import io
import os
import pickle
import pickletools
import zipfile
from typing import Any, NoReturn

import numpy as np

from bdjax.zoo import torch_names

_LEGACY = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19'  # torch before 1.6
_LEAVES = (str, int, float, complex, bool, bytes, type(None))
# Opcodes that no saver writes, and that reach past the list of names.
_FOREIGN_OPCODES = frozenset(
  'EXT1 EXT2 EXT4 INST OBJ PERSID NEXT_BUFFER READONLY_BUFFER'.split()
)
_CURE = (
  'Nothing was run. This reader knows tensors, NumPy arrays, PIL images, '
  'numbers, text and containers of them. If you trust the file, load it with '
  'torch and save its plain parts again, such as '
  "torch.save(model.state_dict(), 'plain.pt')."
)


class RefusedFileError(ValueError):
  """A file that is no plain torch file, is damaged, or wants to run code."""


def read(path: str | os.PathLike) -> Any:
  """Reads what `torch.save` wrote (torch ≥ 1.6).

  Args:
    path: the file, whatever its suffix.

  Returns:
    Dictionaries, lists, tuples and sets of Python numbers, text and read-only
    NumPy arrays; tensors keep shape and dtype, bfloat16 included. PIL images
    become uint8 [h, w] or [h, w, c]; devices become text.

  Raises:
    FileNotFoundError: if there is no such file.
    RefusedFileError: naming what the file asks for, and the cure.
  """
  name = str(os.fspath(path))
  if not os.path.isfile(name):
    raise FileNotFoundError(f'There is no file {name}.')
  if not zipfile.is_zipfile(name):
    _refuse_format(name)
  try:
    with zipfile.ZipFile(name) as archive:
      return _load(_Archive(name, archive))
  except RefusedFileError:
    raise
  except Exception as error:  # whatever a broken stream trips over
    raise RefusedFileError(
      f'{name} cannot be read: {type(error).__name__}: {error}. It is damaged '
      'or no file of torch.save; download or save it again.'
    ) from error


def _load(archive: '_Archive') -> Any:
  stream = archive.read('data.pkl')
  _check_opcodes(archive.path, stream)
  loaded = _Unpickler(archive, stream).load()
  return _resolve(archive.path, loaded, {})


def _refuse(path: str, what: str, cure: str = _CURE) -> NoReturn:
  raise RefusedFileError(f'{path} {what} {cure}')


def _refuse_format(path: str) -> NoReturn:
  """Says what a file is that is no zip."""
  with open(path, 'rb') as file:
    head = file.read(len(_LEGACY))
  if head == _LEGACY:
    _refuse(
      path,
      'has the format of torch before 1.6.',
      'Save it again with a newer torch: '
      'torch.save(torch.load(PATH, weights_only=True), PATH).',
    )
  kind = 'is a bare pickle' if head[:1] == b'\x80' else 'is no zip archive'
  _refuse(
    path,
    f'{kind}, and no file of torch.save.',
    "Save what it holds by torch.save(model.state_dict(), 'plain.pt').",
  )


class _Archive:
  """The zip, with the guards against one that is larger than it looks."""

  def __init__(self, path: str, archive: zipfile.ZipFile):
    self.path, self.archive = path, archive
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
      _refuse(
        path,
        'holds compressed entries, which torch does not write.',
        'Unpack it and save it again with torch.save.',
      )
    # Uncompressed entries that do not overlap cannot exceed their file.
    if sum(entry.file_size for entry in entries) > os.path.getsize(path):
      _refuse(path, 'claims more bytes than it has.', 'Do not trust it.')
    names = archive.namelist()
    if any(name.endswith('/constants.pkl') for name in names):
      _refuse(
        path,
        'is a TorchScript program.',
        "Save its weights: torch.save(module.state_dict(), 'plain.pt').",
      )
    found = [n for n in names if n.endswith('/data.pkl') and n.count('/') == 1]
    if len(found) != 1:
      _refuse(path, f'has {len(found)} streams data.pkl in place of one.')
    self.prefix = found[0].removesuffix('data.pkl')
    order = 'byteorder'
    self.order = self.read(order) if self.has(order) else b'little'

  def has(self, name: str) -> bool:
    return self.prefix + name in self.archive.NameToInfo

  def read(self, name: str) -> bytes:
    return self.archive.read(self.prefix + name)


def _check_opcodes(path: str, stream: bytes) -> None:
  """Refuses opcodes that no saver writes, before any of them is followed."""
  for opcode, argument, _ in pickletools.genops(stream):
    if opcode.name in _FOREIGN_OPCODES:
      _refuse(path, f'uses the pickle opcode {opcode.name}.')
    # The unpickler would make room for a memo of that size.
    if opcode.name.endswith('PUT') and int(argument or 0) > len(stream):
      _refuse(path, f'has a memo of {argument} entries.')


class _Unpickler(pickle.Unpickler):
  """Follows a stream among the known names."""

  def __init__(self, archive: _Archive, stream: bytes):
    super().__init__(io.BytesIO(stream))
    self._archive = archive
    self._storages: dict[str, np.ndarray] = {}

  def find_class(self, module, name):
    if (module, name) not in torch_names.NAMES:
      _refuse(self._archive.path, f'asks for `{module}.{name}`.')
    return torch_names.NAMES[module, name]

  def persistent_load(self, pid):
    tag, kind, key, _, count = pid
    if tag != 'storage' or not isinstance(kind, torch_names.StorageKind):
      raise TypeError('a persistent object that is no storage')
    if key not in self._storages:
      content = self._archive.read(f'data/{key}')
      self._storages[key] = np.frombuffer(content, np.uint8)
    content = self._storages[key]
    if type(count) is not int or count * kind.dtype.itemsize > len(content):
      raise TypeError(f'storage {key} is shorter than it says')
    dtype = kind.dtype
    if self._archive.order == b'big':
      dtype = dtype.newbyteorder('>')
    return torch_names.Storage(content[: count * dtype.itemsize].view(dtype))


def _resolve(path: str, value: Any, seen: dict[int, Any]) -> Any:
  """The value with arrays in place of what stands for them."""
  if isinstance(value, torch_names.Value) and value.array is not None:
    return value.array
  if isinstance(value, _LEAVES):
    return value
  if id(value) not in seen:  # shared parts are visited, and stay, once
    seen[id(value)] = _BUSY
    inner = lambda x: _resolve(path, x, seen)
    if isinstance(value, dict):
      made = {inner(k): inner(v) for k, v in value.items()}
    elif isinstance(value, (list, tuple, set)):
      made = type(value)(map(inner, value))
    else:
      kind = type(value).__name__.lstrip('_')
      _refuse(path, f'holds a bare {kind}.')
    seen[id(value)] = made
  if seen[id(value)] is _BUSY:
    _refuse(path, 'holds something that contains itself.')
  return seen[id(value)]


_BUSY = object()
