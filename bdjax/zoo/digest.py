"""Canonical JSON and the names made from it.

A run is named by what decides its numbers and by nothing else: no path, host,
device count or way of execution enters, so the name is the same on every
machine and in every Python version.
"""

import dataclasses
import enum
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

LENGTH = 16  # hex digits of a digest
_EXACT = 2**53  # integers above this have no float of their own


def plain(value: Any, non_finite: Literal['name', 'null'] = 'name') -> Any:
  """Turns a value into what JSON can hold.

  Dataclasses, named tuples and mappings become dicts, sequences and arrays
  lists, enums their names, and floats of any width the shortest decimal that
  reads back as the same float of that width.

  Args:
    value: scalars, strings, None, arrays and containers of these.
    non_finite: what NaN and infinities become, since JSON has neither: 'name'
      for 'nan', 'inf', '-inf', or 'null' for None.

  Returns:
    A new value of None, bool, int, float, str, list and dict.

  Raises:
    TypeError: for paths, PRNG keys, functions and anything else whose value is
      not plain data.
  """
  if isinstance(value, enum.Enum):
    return value.name
  if value is None or isinstance(value, bool):
    return value
  if isinstance(value, str):
    return str(value)
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float):
    return _float(float(str(value)), non_finite)
  if isinstance(value, os.PathLike):
    raise TypeError(
      f'{os.fspath(value)!r} is a path; paths differ between machines and '
      'enter neither digests nor cards. Name what lies there instead.'
    )
  return _plain_tree(value, non_finite)


def _plain_tree(value: Any, non_finite: Literal['name', 'null']) -> Any:
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  elif isinstance(value, tuple) and hasattr(value, '_asdict'):
    value = value._asdict()  # pyrefly: ignore
  if isinstance(value, Mapping):
    _check_names(value)
    return {str(k): plain(v, non_finite) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v, non_finite) for v in value]
  if hasattr(value, 'dtype') and hasattr(value, 'shape'):
    return _plain_array(value, non_finite)
  raise TypeError(
    f'{type(value).__name__} is not plain data; give numbers, strings, arrays '
    'and containers of these (for a function, its name).'
  )


def _check_names(value: Mapping) -> None:
  for name in value:
    if not isinstance(name, (str, int)) or isinstance(name, bool):
      raise TypeError(
        f'{name!r} is a {type(name).__name__}; keys must be strings.'
      )
  if len({str(name) for name in value}) != len(value):
    raise TypeError(f'Keys {list(value)} are not unique as strings.')


def _plain_array(value: Any, non_finite: Literal['name', 'null']) -> Any:
  if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
    raise TypeError('A PRNG key is not plain data; give its seed.')
  array = np.asarray(jax.device_get(value))
  if array.ndim:
    return [_plain_array(row, non_finite) for row in array]
  if jnp.issubdtype(array.dtype, jnp.floating):
    # str() is the shortest form at the array's own width: float32 0.1 stays
    # 0.1 instead of growing the digits of its float64 neighbor.
    return _float(float(str(array[()])), non_finite)
  return plain(array.item(), non_finite)


def _float(value: float, non_finite: Literal['name', 'null']) -> Any:
  if math.isfinite(value):
    return value
  return None if non_finite == 'null' else str(value)


def _canonical(value: Any) -> Any:
  """Integral floats as integers: `lr=1` and `lr=1.0` are one setting."""
  if isinstance(value, dict):
    return {k: _canonical(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_canonical(v) for v in value]
  if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
    return int(value)
  return value


def canonical_json(obj: Any) -> str:
  """The one JSON text of a value.

  Keys are sorted, there is no whitespace, text is ASCII, floats have their
  shortest round-trip form and integral ones are written as integers.

  Args:
    obj: anything `plain` takes.

  Returns:
    The text.

  Raises:
    TypeError: for values that are not plain data, paths among them.

  Example:
    >>> canonical_json({'b': (1.0, 0.1), 'a': None})
    '{"a":null,"b":[1,0.1]}'
  """
  return json.dumps(
    _canonical(plain(obj)),
    sort_keys=True,
    separators=(',', ':'),
    allow_nan=False,
  )


def digest(obj: Any) -> str:
  """First 16 hex digits of the SHA-256 of the canonical JSON.

  Args:
    obj: anything `plain` takes.

  Returns:
    16 characters of 0–9 and a–f.

  Raises:
    TypeError: for values that are not plain data, paths among them.

  Example:
    >>> digest({'eps': 0.1, 'norm': 'linf'})
    '7246a91bd699ef24'
  """
  return hashlib.sha256(canonical_json(obj).encode()).hexdigest()[:LENGTH]


def run_id(
  stage: str,
  method: str,
  method_version: int,
  hparams: Any,
  dataset_id: str,
  seed: int,
  parents: Sequence[str] = (),
  *,
  arch: str = '',
  arch_options: Mapping[str, Any] | None = None,
) -> str:
  """The name of a run: a digest of all that decides its numbers.

  Args:
    stage: 'clean', 'attack', 'defend', ….
    method: registry key.
    method_version: raised by whoever changes the method's numbers on purpose.
    hparams: fully resolved settings, defaults filled in: those of the method
      and, where it trains, of its recipe.
    dataset_id: identity of the data as the run saw it.
    seed: root of all randomness.
    parents: run_ids this one starts from, in the order of their roles.
    arch: registry key of the architecture; not needed where a parent has it.
    arch_options: its options, such as the width.

  Returns:
    16 hex digits.

  Raises:
    TypeError: if a setting is not plain data.
  """
  return digest(
    {
      'stage': stage,
      'method': method,
      'method_version': method_version,
      'hparams': hparams,
      'dataset_id': dataset_id,
      'seed': seed,
      'parents': list(parents),
      'arch': arch,
      'arch_options': dict(arch_options or {}),
    }
  )
