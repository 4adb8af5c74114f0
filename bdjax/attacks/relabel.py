"""Label rules: which class a trigger leads an image to.

A rule is applied to test labels to know what the attacker wants, and to the
training labels of poisoned images unless the attack is clean-label.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks

LABEL_MODES = ('all2one', 'all2all')


class Relabel(NamedTuple):
  """A label rule with its static facts.

  Attributes:
    apply: int labels [b] -> int labels [b].
    label_mode: one of `LABEL_MODES`.
    target_label: the one target class; None for all-to-all.
  """

  apply: Callable[[jax.Array], jax.Array]
  label_mode: str
  target_label: int | None


def all2one(target_label: int, num_classes: int) -> Relabel:
  """Every class is sent to one target.

  Args:
    target_label: the target class.
    num_classes: number of classes.

  Returns:
    The rule y → target_label.

  Raises:
    ValueError: if the target is no class.

  Example:
    >>> all2one(3, num_classes=10).apply(jnp.array([0, 3, 9])).tolist()
    [3, 3, 3]
  """
  checks.label(num_classes, target_label=target_label)
  return Relabel(
    apply=lambda labels: jnp.full_like(labels, target_label),
    label_mode='all2one',
    target_label=target_label,
  )


def all2all(label_shift: int, num_classes: int) -> Relabel:
  """Every class is sent to another one, `label_shift` further on.

  Args:
    label_shift: s.
    num_classes: number of classes n.

  Returns:
    The rule y → (y + s) mod n.

  Raises:
    ValueError: if the shift sends every class to itself.

  Example:
    >>> all2all(1, num_classes=10).apply(jnp.array([0, 3, 9])).tolist()
    [1, 4, 0]
  """
  if label_shift % num_classes == 0:
    raise ValueError(
      f'`label_shift={label_shift}` sends each of {num_classes} classes to '
      f'itself; use 1 … {num_classes - 1}.'
    )
  return Relabel(
    apply=lambda labels: (jnp.asarray(labels) + label_shift) % num_classes,
    label_mode='all2all',
    target_label=None,
  )


def make_relabel(
  label_mode: str, num_classes: int, target_label: int, label_shift: int
) -> Relabel:
  """A rule by name; the argument the rule has no use for is ignored.

  Args:
    label_mode: 'all2one' or 'all2all'.
    num_classes: number of classes.
    target_label: for 'all2one'.
    label_shift: for 'all2all'.

  Returns:
    The rule.

  Raises:
    ValueError: for an unknown mode or an argument outside of the classes.
  """
  checks.one_of(LABEL_MODES, label_mode=label_mode)
  if label_mode == 'all2one':
    return all2one(target_label, num_classes)
  return all2all(label_shift, num_classes)
