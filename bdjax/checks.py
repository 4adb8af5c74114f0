"""Validators: what was given, what is allowed, what to do.

Each takes keyword arguments and names them in its message. Traced values are
skipped: a check speaks only of numbers that are known when it runs.
"""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


class Unsupported(ValueError):
  """A method cannot work with this network or these data at all."""


def is_concrete(value: Any) -> bool:
  """Whether a value is known now, outside of any trace."""
  return not isinstance(value, jax.core.Tracer)


def _concrete(named: dict[str, Any]) -> Iterable[tuple[str, Any]]:
  for name, value in named.items():
    if value is not None and is_concrete(value):
      yield name, value


def suggest(given: str, known: Iterable[str]) -> str:
  """'Did you mean …? Known: …' for a name that is not among `known`."""
  known = sorted(known)
  close = difflib.get_close_matches(given, known, n=1)
  hint = f"Did you mean '{close[0]}'? " if close else ''
  return f'{hint}Known: {", ".join(known) or "none"}.'


def typed_key(**named: Any) -> None:
  """Typed PRNG keys.

  Raises:
    TypeError: if a value is a legacy uint32 key or no key at all.
  """
  for name, value in named.items():
    dtype = getattr(value, 'dtype', None)
    if dtype is None or not jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
      raise TypeError(
        f'`{name}` must be a typed PRNG key, got {type(value).__name__} of '
        f'dtype {dtype}; make one with jax.random.key(seed).'
      )


def positive(**named: Any) -> None:
  """Numbers > 0.

  Raises:
    ValueError: naming the argument and its value.
  """
  for name, value in _concrete(named):
    if not np.all(np.asarray(value) > 0):
      raise ValueError(f'`{name}={value}` must be positive.')


def non_negative(**named: Any) -> None:
  """Numbers ≥ 0.

  Raises:
    ValueError: naming the argument and its value.
  """
  for name, value in _concrete(named):
    if not np.all(np.asarray(value) >= 0):
      raise ValueError(f'`{name}={value}` must not be negative.')


def fraction(**named: Any) -> None:
  """Ratios in (0, 1].

  Raises:
    ValueError: naming the argument, its value and the likely intent.
  """
  for name, value in _concrete(named):
    if not np.all((np.asarray(value) > 0) & (np.asarray(value) <= 1)):
      cure = 'ratios are fractions'
      if np.ndim(value) == 0 and 1 < value <= 100:
        cure += f', use {value / 100:g} for {value:g} %'
      raise ValueError(f'`{name}={value}` is not in (0, 1]; {cure}.')


def unit_interval(**named: Any) -> None:
  """Numbers in [0, 1].

  Raises:
    ValueError: naming the argument and its value.
  """
  for name, value in _concrete(named):
    if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= 1)):
      raise ValueError(f'`{name}={value}` is not in [0, 1].')


def pixel_budget(norm: str, **named: Any) -> None:
  """Perturbation budgets in pixel space [0, 1].

  Raises:
    ValueError: if an L∞ budget exceeds 1, most likely given in 0–255 units.
  """
  non_negative(**named)
  for name, value in _concrete(named):
    largest = float(np.max(value))
    if norm == 'linf' and largest > 1:
      raise ValueError(
        f'`{name}={value}` exceeds 1 for the linf norm; images live in '
        f'[0, 1], write {largest:g}/255 for {largest:g} gray levels.'
      )


def one_of(allowed: Iterable[Any], **named: Any) -> None:
  """Values from a fixed set.

  Raises:
    ValueError: with the nearest allowed value.
  """
  allowed = tuple(allowed)
  for name, value in named.items():
    if value not in allowed:
      raise ValueError(
        f'`{name}={value!r}` is not allowed. '
        f'{suggest(str(value), map(str, allowed))}'
      )


def label(num_classes: int, **named: Any) -> None:
  """Class labels in [0, num_classes).

  Raises:
    TypeError: if a value is not an integer.
    ValueError: naming the argument, its value and the range.
  """
  for name, value in _concrete(named):
    labels = np.asarray(value)
    if labels.dtype.kind not in 'iu':
      raise TypeError(
        f'`{name}={value}` is no class label; labels are integers.'
      )
    if not np.all((labels >= 0) & (labels < num_classes)):
      raise ValueError(
        f'`{name}={value}` is out of range: labels are 0 … {num_classes - 1} '
        f'for {num_classes} classes.'
      )


def unit_images(**named: Any) -> None:
  """Float images [..., h, w, c] in [0, 1].

  Raises:
    TypeError: if the images are integers.
    ValueError: if they have no channel axis or leave [0, 1].
  """
  for name, value in named.items():
    if np.ndim(value) < 3:
      raise ValueError(
        f'`{name}` has shape {np.shape(value)}; images are [..., h, w, c].'
      )
    if not jax.dtypes.issubdtype(value.dtype, np.floating):
      raise TypeError(
        f'`{name}` has dtype {value.dtype}; images must be floats in [0, 1], '
        'convert uint8 with data.to_float.'
      )
    if is_concrete(value) and np.size(value):
      # A known array may be closed over by a function that is being traced.
      with jax.ensure_compile_time_eval():
        low, high = float(value.min()), float(value.max())
      if not (low >= 0 and high <= 1):
        raise ValueError(
          f'`{name}` must lie in [0, 1], got min {low:g} and max {high:g}; '
          'divide uint8 by 255 (data.to_float).'
        )


def byte_images(**named: Any) -> None:
  """uint8 images [N, h, w, c].

  Raises:
    TypeError: if the dtype is not uint8.
    ValueError: if the shape is not [N, h, w, c].
  """
  for name, value in named.items():
    if value.dtype != np.uint8:
      raise TypeError(
        f'`{name}` has dtype {value.dtype}; data sets hold uint8 images.'
      )
    if np.ndim(value) != 4:
      raise ValueError(
        f'`{name}` has shape {np.shape(value)}; expected [N, h, w, c].'
      )
