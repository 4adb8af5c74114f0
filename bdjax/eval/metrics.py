"""Metrics of an attack and of a defense, each from one formula.

With ŷ the predicted class, y the true one, x the image, T(x) the triggered
image and r the attack's rule for labels:

  c_acc = mean [ŷ(x) = y]          over all clean test images
  asr   = mean [ŷ(T(x)) = r(y)]    over the test images with r(y) ≠ y
  r_acc = mean [ŷ(T(x)) = y]       over the same images, so asr + r_acc ≤ 1

With C(x) the image with another trigger than its own:

  cross_acc = mean [ŷ(C(x)) = y]     over all test images
  cross_asr = mean [ŷ(C(x)) = r(y)]  over the test images with r(y) ≠ y

All are fractions in [0, 1]. What is missing is None, never 0.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bdjax import checks

CLEAN_COUNTS = ('clean_hits', 'clean_total')
ATTACK_COUNTS = ('attack_hits', 'robust_hits', 'triggered_total')
CROSS_COUNTS = ('cross_hits', 'cross_attack_hits')
LOSSES = {'clean_loss': 'clean_total', 'attack_loss': 'triggered_total'}


def _positive_part(x):
  """The larger of 0 and x, for Python numbers and for arrays."""
  return (abs(x) + x) / 2


def der(asr_before, asr_after, c_acc_before, c_acc_after) -> Any:
  """Defense effectiveness rating; 1 = perfect, 0.5 = no effect.

  DER = (max(0, asr_before − asr_after)
         − max(0, c_acc_before − c_acc_after) + 1) / 2

  Args:
    asr_before: attack success rate of the attacked model, or array [m].
    asr_after: attack success rate of the defended model.
    c_acc_before: clean accuracy of the attacked model.
    c_acc_after: clean accuracy of the defended model.

  Returns:
    A number in [0, 1], or an array [m].

  Raises:
    ValueError: if a rate is no fraction.

  Example:
    >>> round(der(1.0, 0.05, 0.9, 0.88), 3)
    0.965
  """
  checks.unit_interval(
    asr_before=asr_before,
    asr_after=asr_after,
    c_acc_before=c_acc_before,
    c_acc_after=c_acc_after,
  )
  gain = _positive_part(asr_before - asr_after)
  cost = _positive_part(c_acc_before - c_acc_after)
  return (gain - cost + 1) / 2


def rir(r_acc_before, r_acc_after, c_acc_before, c_acc_after) -> Any:
  """Robust improvement rating; 0.5 = no effect.

  RIR = (max(0, r_acc_after − r_acc_before)
         − max(0, c_acc_before − c_acc_after) + 1) / 2

  Args:
    r_acc_before: robust accuracy of the attacked model, or array [m].
    r_acc_after: robust accuracy of the defended model.
    c_acc_before: clean accuracy of the attacked model.
    c_acc_after: clean accuracy of the defended model.

  Returns:
    A number in [0, 1], or an array [m].

  Raises:
    ValueError: if a rate is no fraction.

  Example:
    >>> rir(0.0, 1.0, 0.9, 0.9)
    1.0
  """
  checks.unit_interval(
    r_acc_before=r_acc_before,
    r_acc_after=r_acc_after,
    c_acc_before=c_acc_before,
    c_acc_after=c_acc_after,
  )
  gain = _positive_part(r_acc_after - r_acc_before)
  cost = _positive_part(c_acc_before - c_acc_after)
  return (gain - cost + 1) / 2


def rates(counts: Mapping[str, Any]) -> dict[str, Any]:
  """Rates from the counts of `eval.count`, on the host.

  Args:
    counts: int scalars of one model, or int arrays [m] of a stack. Those of
      clean images or of the attack may be absent, and of a cross trigger.

  Returns:
    c_acc, asr, r_acc as floats, n_clean_test, n_triggered_test as ints,
    finite (no image had a non-finite logit) as a bool; for a stack, arrays [m]
    of them. Rates without an attack or without images are None (NaN where
    only some members of a stack have none). Where cross triggers were
    counted, cross_acc and cross_asr too; where the losses were summed,
    clean_loss and attack_loss: means over images, in nats.

  Raises:
    ValueError: if counts are unknown or missing.
    TypeError: if the counts are traced.

  Example:
    >>> counts = {'clean_hits': 9, 'clean_total': 10, 'non_finite': 0}
    >>> rates(counts)['c_acc'], rates(counts)['asr']
    (0.9, None)
  """
  _check_counts(counts)
  counts = {name: np.asarray(value) for name, value in counts.items()}
  result = {
    'c_acc': _share(counts, 'clean_hits', 'clean_total'),
    'asr': _share(counts, 'attack_hits', 'triggered_total'),
    'r_acc': _share(counts, 'robust_hits', 'triggered_total'),
    'n_clean_test': counts.get('clean_total'),
    'n_triggered_test': counts.get('triggered_total'),
    'finite': counts['non_finite'] == 0,
  }
  if 'cross_hits' in counts:
    result |= {
      'cross_acc': _share(counts, 'cross_hits', 'clean_total'),
      'cross_asr': _share(counts, 'cross_attack_hits', 'triggered_total'),
    }
  for loss, total in LOSSES.items():
    if loss in counts:
      result[loss] = _share(counts, loss, total)
  return {name: _as_python(value) for name, value in result.items()}


def _check_counts(counts: Mapping[str, Any]) -> None:
  """Refuses unknown, missing and traced counts."""
  names = set(counts) - LOSSES.keys()
  clean, attack, both = (
    {'non_finite', *some}
    for some in (CLEAN_COUNTS, ATTACK_COUNTS, CLEAN_COUNTS + ATTACK_COUNTS)
  )
  if names not in (clean, attack, both, both | set(CROSS_COUNTS)):
    raise ValueError(
      f'Got the counts {sorted(names)}; expected non_finite and '
      f'{sorted(CLEAN_COUNTS)}, {sorted(ATTACK_COUNTS)} or both, then '
      f'possibly {sorted(CROSS_COUNTS)}. Make them with eval.count.'
    )
  if not all(checks.is_concrete(x) for x in jax.tree.leaves(dict(counts))):
    raise TypeError(
      'Rates are computed on the host; return the counts of eval.count from '
      'the traced function and call eval.rates outside.'
    )


def _share(counts, hits: str, total: str):
  """hits/total, None where the total is absent or 0 throughout."""
  if total not in counts or not np.any(counts[total]):
    return None
  totals = counts[total]
  return np.where(totals > 0, counts[hits] / np.maximum(totals, 1), np.nan)


def _as_python(value):
  """Python numbers for scalars; arrays and None as they are."""
  return value.item() if np.ndim(value) == 0 and value is not None else value
