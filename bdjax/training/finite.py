"""Finite checks on metrics, naming the models that failed."""

from collections.abc import Sequence

import numpy as np

from bdjax import types


class NonFiniteError(FloatingPointError):
  """A loss became NaN or infinite."""


def finite_members(metrics: types.Metrics, stacked: bool) -> np.ndarray:
  """Which models have finite metrics throughout.

  Args:
    metrics: host arrays [steps], or [m, steps] where `stacked`; nested
      dictionaries of them are fine.
    stacked: whether there is a leading model axis.

  Returns:
    bool [m], or [1] for a single model.
  """
  rows = [
    np.asarray(value).reshape(np.shape(value)[0] if stacked else 1, -1)
    for value in _leaves(metrics)
  ]
  if not rows:
    return np.ones(1, bool)
  return np.all([np.isfinite(row).all(axis=1) for row in rows], axis=0)


def _leaves(metrics):
  for value in metrics.values():
    if isinstance(value, dict):
      yield from _leaves(value)
    else:
      yield value


def require_finite(
  metrics: types.Metrics, phase: str, step: int, names: Sequence[str] | None
) -> None:
  """Raises if a single model's metrics are not finite.

  A stack goes on without its failed members: freezing one model must not cost
  the others their run, so there `finite_members` is asked at the end.

  Raises:
    NonFiniteError: naming model, phase, metric and step range.
  """
  for name, value in metrics.items():
    bad = np.flatnonzero(~np.isfinite(np.asarray(value)))
    if bad.size:
      who = names[0] if names else 'the model'
      raise NonFiniteError(
        f'`{name}` of {who} is {np.asarray(value)[bad[0]]} at step '
        f"{step + int(bad[0])} of phase '{phase}'; lower the learning rate "
        'or check the parent checkpoint.'
      )
