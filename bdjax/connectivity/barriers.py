"""Numbers that sum up a path between two models.

Curves are arrays over positions t, the first at t = 0 and the last at t = 1;
leading axes are other paths. Rates are fractions in [0, 1].
"""

import math
from typing import Any

import numpy as np

from bdjax import checks


def barrier(t, error) -> np.ndarray:
  """How far an error rises above the straight line between its ends.

    max over t of  err(t) − ((1 − t)·err(0) + t·err(1))

  It is at least 0, and 0 for a path that never rises above that line.

  Args:
    t: positions [k], from 0 to 1.
    error: error at these positions, [..., k].

  Returns:
    float64 [...].

  Raises:
    ValueError: if the positions do not run from 0 to 1, or lengths differ.
  """
  t, error = _curve(t, error)
  line = (1 - t) * error[..., :1] + t * error[..., -1:]
  return np.max(error - line, axis=-1)


def auc(t, values) -> np.ndarray:
  """Area under a curve on [0, 1] by the trapezoid rule: its mean height.

  Of the backdoor error 1 − ASR: large where the backdoor is far away along
  most of the path.

  Args:
    t: positions [k], from 0 to 1.
    values: heights [..., k].

  Returns:
    float64 [...].

  Raises:
    ValueError: if the positions do not run from 0 to 1, or lengths differ.
  """
  t, values = _curve(t, values)
  return np.sum(np.diff(t) * (values[..., 1:] + values[..., :-1]) / 2, axis=-1)


def tau_star(t, asr, threshold: float = 0.5) -> float | None:
  """The largest position at which the attack still works.

  With the backdoored model at t = 0: how little of the way back brings the
  backdoor back. Smaller is safer; no value between two positions is made up.

  Args:
    t: positions [k], from 0 to 1.
    asr: attack success rates [k].
    threshold: rate that counts as working.

  Returns:
    A position, or None where the attack works nowhere.

  Raises:
    ValueError: if the positions do not run from 0 to 1, or lengths differ.
  """
  t, asr = _curve(t, asr)
  checks.unit_interval(threshold=threshold)
  works = t[asr >= threshold]
  # Positions are float32: 0.65 is meant where 0.64999998 is stored.
  return round(float(works.max()), 6) if works.size else None


def summarize(t, c_acc, asr) -> dict[str, Any]:
  """The three numbers of one path, as a record holds them.

  Args:
    t: positions [k], from 0 to 1.
    c_acc: clean accuracies [k].
    asr: attack success rates [k].

  Returns:
    barrier_clean (of the error 1 − c_acc), backdoor_error_auc and tau_star;
    None where a curve is not finite.

  Raises:
    ValueError: if the positions do not run from 0 to 1, or lengths differ.
  """
  clean = float(barrier(t, 1 - np.asarray(c_acc)))
  area = float(auc(t, 1 - np.asarray(asr)))
  return {
    'barrier_clean': clean if math.isfinite(clean) else None,
    'backdoor_error_auc': area if math.isfinite(area) else None,
    'tau_star': tau_star(t, asr) if math.isfinite(area) else None,
  }


def _curve(t, values) -> tuple[np.ndarray, np.ndarray]:
  """Both as float64, after refusing what is no path from 0 to 1."""
  t, values = np.asarray(t, np.float64), np.asarray(values, np.float64)
  if t.ndim != 1 or t.size < 2 or t[0] != 0 or t[-1] != 1:
    raise ValueError(
      f'`t` runs from {t.flat[0]:g} to {t.flat[-1]:g} with {t.size} '
      'positions; a path has its ends at exactly 0 and 1 (linear.positions).'
    )
  if np.any(np.diff(t) <= 0):
    raise ValueError('`t` must increase from 0 to 1; sort the positions.')
  if values.shape[-1] != t.size:
    raise ValueError(
      f'{values.shape[-1]} values for {t.size} positions; give one each.'
    )
  return t, values
