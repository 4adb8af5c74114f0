"""A re-activation and its settings, made once for all families of a run."""

import functools
from typing import Any

from bdjax import eval, reactivation, registry, sweep, training, types
from launch import world


class Method:
  """A method of the registry with what is compiled for it.

  Victims differ in their data alone, so that all families whose models have
  the same network share one attack and its programs.

  Attributes:
    hp: hyper-parameters.
    exec: how stacks are run.
    make: (classifier, **further networks) -> the attack; the same one for the
      same networks.
    counting: (classifier, trigger) -> function that counts what the trigger
      achieves; kept as `make`.
  """

  def __init__(self, entry: registry.Entry, hp: Any, exec: types.Exec):
    self.hp, self.exec = hp, exec
    self.make = functools.cache(functools.partial(entry.make, hp=hp))
    self.counting = functools.cache(_counting)
    self._lift = functools.partial(sweep.lift, exec=exec)
    self._compiled: training.Programs = {}

  def learn(self, attack: types.Reactivation, carry, feeds, key, **options):
    """`training.run_phases` of a stack, with the programs of those before."""
    return training.run_phases(
      attack.phases,
      carry,
      feeds,
      key,
      lift=self._lift,
      compiled=self._compiled,
      **options,
    )


def _counting(classifier: types.Classifier, trigger: types.Trigger):
  """((model, params), images, labels, shown) -> counts of the perturbed."""

  def count(member, images, labels, shown):
    model, params = member
    stamp = reactivation.controls.perturbed_stamp(None, trigger, params)
    return eval.count(
      classifier,
      model,
      images,
      labels,
      stamp=stamp,
      key=world.stamp_key(),
      shown=shown,
      with_clean=False,
    )

  return count
