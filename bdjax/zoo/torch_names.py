"""What the pickle stream of a torch file may name, and what stands for it.

Nothing here is the real thing: an unpickler that knows `NAMES` alone can make
dictionaries, numbers, text and read-only arrays, and cannot change any function
or class of this process.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

_TYPES = {
  'Float': np.float32,
  'Double': np.float64,
  'Half': np.float16,
  'BFloat16': jnp.bfloat16,
  'Byte': np.uint8,
  'Char': np.int8,
  'Short': np.int16,
  'Int': np.int32,
  'Long': np.int64,
  'Bool': np.bool_,
  'ComplexFloat': np.complex64,
  'ComplexDouble': np.complex128,
  'Untyped': np.uint8,
}
_CHANNELS = {'L': (), 'RGB': (3,), 'RGBA': (4,)}  # modes of PIL
_NUMPY_DTYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6})')


class _Maker:
  """Stands for a callable of the stream; cannot be changed by it."""

  __slots__ = ('_make',)
  _make: Callable[..., Any]

  def __init__(self, make: Callable[..., Any]):
    object.__setattr__(self, '_make', make)

  def __call__(self, *args):
    return self._make(*args)

  def __setattr__(self, name, value):
    raise TypeError(f'a stream sets `{name}` of a function')

  def __setstate__(self, state):
    raise TypeError('a stream sets the state of a function')


class _Mapping(dict):
  """Stands for OrderedDict; the attributes a stream gives it are dropped."""

  __slots__ = ()

  def __setstate__(self, state):
    del state


class Value:
  """Stands for an array until the stream has been read."""

  __slots__ = ('array',)

  def __init__(self, array: np.ndarray | None = None):
    self.array = array

  def __setstate__(self, state) -> None:
    raise TypeError(f'a stream sets the state of a {type(self).__name__}')


class _Tensor(Value):
  """A tensor."""

  __slots__ = ()


class _Array(Value):
  """A NumPy array, which gets shape and content as its state."""

  __slots__ = ()

  def __setstate__(self, state):
    _, shape, kind, is_fortran, content = state
    flat = np.frombuffer(content, kind.dtype) if content else None
    if flat is None:
      flat = np.empty(0, kind.dtype)
    self.array = flat.reshape(shape, order='F' if is_fortran else 'C')


class _Picture(Value):
  """A PIL image, which gets [info, mode, size, palette, content, …]."""

  __slots__ = ()

  def __setstate__(self, state):
    mode, (width, height), content = state[1], state[2], state[4]
    if mode not in _CHANNELS:
      raise TypeError(
        f'an image of mode {mode!r}; convert it to RGB before saving'
      )
    shape = (height, width, *_CHANNELS[mode])
    self.array = np.frombuffer(content, np.uint8).reshape(shape)


class _DType:
  """A NumPy dtype, whose byte order comes as its state."""

  __slots__ = ('dtype',)

  def __init__(self, name, *flags):
    del flags
    if not isinstance(name, str) or not _NUMPY_DTYPE.fullmatch(name):
      raise TypeError(f'arrays of dtype {name!r} are not read')
    self.dtype = np.dtype(name)

  def __setstate__(self, state):
    if state[1] in ('<', '>'):
      self.dtype = self.dtype.newbyteorder(state[1])


class StorageKind:
  """A class of storages: its dtype."""

  __slots__ = ('dtype',)
  dtype: np.dtype

  def __init__(self, dtype):
    object.__setattr__(self, 'dtype', np.dtype(dtype))

  def __setattr__(self, name, value):
    raise TypeError(f'a stream sets `{name}` of a class')

  def __setstate__(self, state):
    raise TypeError('a stream sets the state of a class')


class Storage:
  """The flat content of a storage."""

  __slots__ = ('flat',)

  def __init__(self, flat: np.ndarray):
    self.flat = flat

  def __setstate__(self, state):
    raise TypeError('a stream sets the state of a storage')


def _tensor(storage, offset, size, stride, *rest) -> _Tensor:
  """A view of a storage, within its bounds and never larger than it."""
  del rest  # gradients, hooks, metadata
  flat, count = storage.flat, math.prod(size)
  whole = [offset, *size, *stride]
  if any(type(n) is not int or n < 0 for n in whole):
    raise TypeError('a tensor with sizes that are no counts')
  if len(size) != len(stride):
    raise TypeError(f'a tensor of size {size} with strides {stride}')
  if not count:
    return _Tensor(np.empty(size, flat.dtype))
  last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if last >= len(flat):
    raise TypeError('a tensor that reaches beyond its storage')
  if count > len(flat):
    raise TypeError('a tensor larger than its storage; save x.contiguous()')
  strides = [s * flat.itemsize for s in stride]
  return _Tensor(
    np.lib.stride_tricks.as_strided(
      flat[offset:], size, strides, writeable=False
    )
  )


def _scalar(kind: _DType, content: bytes) -> Any:
  """A NumPy number as Python's."""
  (value,) = np.frombuffer(content, kind.dtype)
  return value.item()


def _encode(text: str, encoding: str) -> bytes:
  """How older pickles write bytes."""
  if encoding != 'latin1':
    raise TypeError(f'bytes in the encoding {encoding!r}')
  return text.encode('latin1')


def _names() -> dict[tuple[str, str], Any]:
  """All that a stream may name."""
  reconstruct = _Maker(lambda *_: _Array())
  names: dict[tuple[str, str], Any] = {
    ('collections', 'OrderedDict'): _Mapping,
    ('torch._utils', '_rebuild_tensor'): _Maker(_tensor),
    ('torch._utils', '_rebuild_tensor_v2'): _Maker(_tensor),
    ('torch._utils', '_rebuild_parameter'): _Maker(lambda data, *_: data),
    ('torch', 'Size'): _Maker(tuple),
    ('torch', 'device'): _Maker(lambda *parts: ':'.join(map(str, parts))),
    ('numpy', 'ndarray'): _Maker(lambda *_: _Array()),
    ('numpy', 'dtype'): _Maker(_DType),
    ('_codecs', 'encode'): _Maker(_encode),
    ('PIL.Image', 'Image'): _Picture,
    ('PIL.PngImagePlugin', 'PngImageFile'): _Picture,
    ('PIL.JpegImagePlugin', 'JpegImageFile'): _Picture,
  }
  for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
    names[module, '_reconstruct'] = reconstruct
    names[module, 'scalar'] = _Maker(_scalar)
  for module in ('builtins', '__builtin__'):
    names[module, 'bytes'] = _Maker(lambda: b'')
    names[module, 'set'] = _Maker(set)
  for name, dtype in _TYPES.items():
    for module in ('torch', 'torch.storage'):
      names[module, f'{name}Storage'] = StorageKind(dtype)
  return names


NAMES = _names()
