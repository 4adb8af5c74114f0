"""What the instruments share: skip what is done, measure the rest, store it."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bdjax import zoo
from launch import cli, lineage, results, show


class Finding(NamedTuple):
  """What an instrument found out about one defended model.

  Attributes:
    record: fields of the record.
    line: what to tell the user.
    metrics: what goes into metrics.json beside the record.
    arrays: arrays to keep.
    state: trees to keep, for stages that make something.
  """

  record: dict[str, Any]
  line: str
  metrics: dict[str, Any]
  arrays: dict[str, Any]
  state: dict[str, Any] | None = None


def run(
  stage: str,
  config: Any,
  context: cli.Context,
  settings: dict[str, Any],
  family: lineage.Family,
  compute: Callable[[list[lineage.Child]], Sequence[Finding]],
  *,
  others: Callable[[lineage.Child], tuple[zoo.Artefact, ...]] = lambda _: (),
  variant: str | None = None,
) -> list[zoo.Artefact]:
  """Measures those children of a family that have not been measured.

  Args:
    stage: 'existence', 'reactivate' or 'connect'.
    config: has `name` and `seed`.
    context: where and how.
    settings: fully resolved, part of the identity.
    family: a victim and its defended models.
    compute: children -> one finding each.
    others: child -> further parents, such as the clean model.
    variant: what sets this run apart from the usual one, for the record.

  Returns:
    One artefact per child, in their order.
  """
  victim = family.victim.artefact
  runs = [
    _Run(stage, config, settings, family, c, (victim, *others(c)), variant)
    for c in family.children
  ]
  known = [results.finished(context, run.run_id) for run in runs]
  todo = [i for i, artefact in enumerate(known) if artefact is None]
  for child, artefact in zip(family.children, known, strict=True):
    if artefact is not None:
      show.done(f'{stage} of {child.artefact.name}: finished before')
  began = time.monotonic()
  findings = compute([family.children[i] for i in todo]) if todo else ()
  seconds = (time.monotonic() - began) / max(len(todo), 1)
  for i, finding in zip(todo, findings, strict=True):
    known[i] = runs[i].store(context, finding, seconds)
    show.done(finding.line)
  return [artefact for artefact in known if artefact is not None]


class _Run:
  """One instrument on one defended model."""

  def __init__(self, stage, config, settings, family, child, others, variant):
    self.stage, self.config, self.settings = stage, config, settings
    self.variant = variant
    self.here, self.defended = family.here, child.artefact.card
    self.parents = (
      self.defended.run_id,
      *(artefact.card.run_id for artefact in others),
    )
    self.run_id = zoo.run_id(
      stage,
      config.name,
      1,
      settings,
      family.here.dataset_id,
      config.seed,
      self.parents,
    )

  def store(self, context, finding: Finding, seconds: float) -> zoo.Artefact:
    """Writes the artefact and its record."""
    parent = self.defended
    card = results.card(
      self.here,
      self.config,
      run_id=self.run_id,
      stage=self.stage,
      method=self.config.name,
      settings=self.settings,
      metrics=finding.metrics,
      attack=parent.attack,
      parents=self.parents,
      facts={k: v for k, v in parent.data.items() if k != 'reserved'},
    )
    measured = {
      'run_s': seconds,
      'defense': parent.method,
      'variant': self.variant,
    }
    measured |= {k: parent.metrics[k] for k in ('c_acc', 'asr', 'r_acc')}
    return results.finish(
      context,
      card,
      state=finding.state,
      arrays=finding.arrays,
      config=self.config.to_dict(),
      metrics=finding.metrics,
      record=results.record(
        card, **(measured | results.attack_facts(parent) | finding.record)
      ),
    )
