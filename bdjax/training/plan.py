"""Plans: from a phase's length and its feed to steps, epochs and chunks."""

from collections.abc import Mapping
from typing import NamedTuple

from bdjax import types
from bdjax.training.feed import (
  Feed,
  batch_size,
  split_feed,
  steps_per_epoch,
)


class Plan(NamedTuple):
  """Static lengths of one phase.

  Attributes:
    num_steps: steps in all.
    num_epochs: epochs in all, rounded up.
    per_epoch: steps of one epoch.
    size: rows per step.
    n: rows the phase may choose from.
  """

  num_steps: int
  num_epochs: int
  per_epoch: int
  size: int
  n: int


def plan(phase: types.Phase, feed: Feed | None) -> Plan:
  """Turns a phase's length into steps; raises on contradictory lengths.

  All models of a stack read equally many rows, the last axis of `index`.
  """
  if phase.num_steps and phase.num_epochs:
    raise ValueError(
      f"Phase '{phase.name}' has num_steps={phase.num_steps} and num_epochs="
      f'{phase.num_epochs}; give one of them.'
    )
  if feed is None:
    steps = phase.num_steps
    return Plan(steps, 1, max(steps, 1), 0, 0)
  n = int(feed.index.shape[-1])
  per_epoch = steps_per_epoch(phase, n)
  steps = phase.num_steps or phase.num_epochs * per_epoch
  num_epochs = -(-steps // per_epoch)
  size = batch_size(phase, n)
  return Plan(steps, num_epochs, per_epoch, size, n)


def feed_of(phase: types.Phase, feeds: Mapping[str, Feed]) -> Feed | None:
  """The feed a phase reads, None where it reads nothing.

  'clean_fit' and 'clean_val' are the parts of 'clean' unless they are given.
  """
  if phase.reads == 'none':
    return None
  if phase.reads in ('clean_fit', 'clean_val') and 'clean' in feeds:
    names = ('clean_fit', 'clean_val')
    parts = zip(names, split_feed(feeds['clean']), strict=True)
    feeds = {**dict(parts), **feeds}
  if phase.reads not in feeds:
    raise ValueError(
      f"Phase '{phase.name}' reads '{phase.reads}', but the feeds are "
      f"{sorted(feeds)}; pass feeds={{'{phase.reads}': training.make_feed(…)}}."
    )
  if phase.batch_size < 1:
    raise ValueError(
      f"Phase '{phase.name}' reads data with batch_size={phase.batch_size}; "
      'it must be at least 1.'
    )
  return feeds[phase.reads]


def usual_chunk(phase: types.Phase, plan: Plan) -> int:
  """Steps between two reports: an epoch, or a 20th of a length in steps."""
  twentieth = plan.num_steps // 20 if phase.num_steps else 0
  return max(plan.per_epoch, twentieth)


def chunk_length(num_steps: int, wanted: int | None) -> int:
  """A length near `wanted` that divides `num_steps` where one exists.

  Chunks of one length share one compiled program.
  """
  if wanted is None or wanted >= num_steps:
    return num_steps
  near = range(max(1, wanted // 2), min(2 * wanted, num_steps) + 1)
  divisors = [d for d in near if num_steps % d == 0]
  return min(divisors, key=lambda d: abs(d - wanted), default=wanted)
