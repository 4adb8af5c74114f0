"""Writes files as torch does, without torch: a zip of a pickle and storages."""

import io
import pathlib
import pickle
import zipfile
from typing import Any, NamedTuple

import numpy as np

KINDS = {
  'float32': 'Float',
  'float64': 'Double',
  'float16': 'Half',
  'bfloat16': 'BFloat16',
  'uint8': 'Byte',
  'int8': 'Char',
  'int16': 'Short',
  'int32': 'Int',
  'int64': 'Long',
  'bool': 'Bool',
}


class Name:
  """A global that is written, never imported."""

  def __init__(self, module: str, name: str):
    self.module, self.__name__ = module, name

  def __call__(self, *args):
    raise AssertionError('only a name')


class Call(NamedTuple):
  """A call that reading the file would make."""

  name: Name
  args: tuple


class Storage(NamedTuple):
  """The flat content of a storage; one object is one storage."""

  content: np.ndarray


class Tensor(NamedTuple):
  """A strided view of a storage."""

  storage: Storage
  offset: int
  size: tuple
  stride: tuple


def tensor(array) -> Tensor:
  """An array as a tensor with a storage of its own."""
  array = np.array(array, order='C')
  strides = tuple(s // array.itemsize for s in array.strides)
  return Tensor(Storage(array.reshape(-1)), 0, array.shape, strides)


def tensors(arrays) -> dict[str, Tensor]:
  return {name: tensor(value) for name, value in arrays.items()}


# The pickler written in Python, whose steps can be changed.
class _Pickler(pickle._Pickler):  # pyrefly: ignore
  def __init__(self, file, protocol=2):
    super().__init__(file, protocol)
    self.storages: list[Storage] = []
    self.kept: list = []  # ids of what is pickled must not be used again

  def persistent_id(self, obj):
    if not isinstance(obj, Storage):
      return None
    if not any(obj is known for known in self.storages):
      self.storages.append(obj)
    key = next(i for i, known in enumerate(self.storages) if known is obj)
    kind = Name('torch', f'{KINDS[str(obj.content.dtype)]}Storage')
    pid = ('storage', kind, str(key), 'cpu', obj.content.size)
    self.kept.append(pid)
    return pid

  def save(self, obj, save_persistent_id=True):
    self.kept.append(obj)
    if isinstance(obj, Name):
      self.write(f'c{obj.module}\n{obj.__name__}\n'.encode())
    elif isinstance(obj, Call):
      self.save_reduce(obj.name, obj.args)
    elif isinstance(obj, Tensor):
      rebuild = Name('torch._utils', '_rebuild_tensor_v2')
      hooks = Call(Name('collections', 'OrderedDict'), ())
      self.save_reduce(rebuild, (*obj, False, hooks))
    else:
      super().save(obj, save_persistent_id)


def stream(value: Any, protocol: int = 2) -> tuple[bytes, list[Storage]]:
  """The pickle stream of a value and the storages that it names."""
  file = io.BytesIO()
  pickler = _Pickler(file, protocol)
  pickler.dump(value)
  return file.getvalue(), pickler.storages


def save(path, value: Any, protocol: int = 2) -> pathlib.Path:
  """`torch.save(value, path)`."""
  content, storages = stream(value, protocol)
  raw = [storage.content.tobytes() for storage in storages]
  return save_stream(path, content, raw)


def save_stream(
  path,
  content: bytes,
  storages: list[bytes] = (),
  *,
  order: bytes = b'little',
  compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
  """A file with any stream inside."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', content)
    archive.writestr('archive/byteorder', order)
    for key, raw in enumerate(storages):
      archive.writestr(f'archive/data/{key}', raw)
    archive.writestr('archive/version', b'3\n')
  return path
