"""Back to disk: cards, records and artefacts of what has just been run."""

from collections.abc import Mapping
from typing import Any

from bdjax import zoo
from launch import cli, world


def card(
  here: world.World,
  config: Any,
  *,
  run_id: str,
  stage: str,
  method: str,
  settings: dict[str, Any],
  metrics: dict[str, Any],
  attack: dict[str, Any],
  parents: tuple[str, ...] = (),
  facts: dict[str, Any] | None = None,
) -> zoo.Card:
  """The card of a run that has just ended.

  Args:
    here: data and network.
    config: has `seed`.
    run_id: see `zoo.run_id`.
    stage: life-cycle stage.
    method: registry key.
    settings: fully resolved, part of the identity.
    metrics: what was measured.
    attack: facts of the backdoor, {} for a clean model.
    parents: run_ids it starts from.
    facts: what to say of the data; None = the world's.
  """
  return zoo.Card(
    run_id=run_id,
    stage=stage,
    method=method,
    dataset=here.spec.name,
    dataset_id=here.dataset_id,
    arch=here.arch,
    arch_options=here.arch_options,
    num_classes=here.spec.num_classes,
    seed=config.seed,
    parents=parents,
    config_digest=zoo.digest.digest(settings),
    hparams=settings,
    attack=attack,
    data=here.facts if facts is None else facts,
    versions=zoo.environment.versions(),
    metrics=metrics,
    time_utc=zoo.environment.time_utc(),
  )


def flat_curves(curves, prefix: str = 'curves') -> dict[str, Any]:
  """The metrics of `training.run_phases` as arrays of an artefact."""
  return {
    f'{prefix}/{phase}/{name}': values
    for phase, of_phase in curves.items()
    for name, values in of_phase.items()
  }


def attack_facts(victim_card: zoo.Card) -> dict[str, Any]:
  """The record fields that describe the backdoor inside."""
  facts = victim_card.attack
  names = 'attack label_mode target_label poison_ratio cover_ratio num_poison'
  return {name: facts.get(name) for name in names.split()}


def finish(
  context: cli.Context,
  card: zoo.Card,
  *,
  config: Any,
  metrics: Mapping[str, Any],
  record: Mapping[str, Any],
  state: Mapping[str, Any] | None = None,
  arrays: Mapping[str, Any] | None = None,
) -> zoo.Artefact:
  """Writes an artefact, its record, and forgets its progress.

  The record is kept with the artefact as well: a kill between the two writes
  loses nothing, `finished` appends the missing line.
  """
  artefact = zoo.write(
    context.workdir,
    card,
    state=state,
    arrays=arrays,
    config=config,
    metrics={**metrics, 'record': record},
    force=context.force,
  )
  zoo.records.append(context.records, record)
  zoo.Progress(context.workdir, card.run_id).clear()
  return artefact


def record(card: zoo.Card, **fields: Any) -> dict[str, Any]:
  """A record with all that a card knows."""
  facts = {
    name: getattr(card, name)
    for name in (
      'run_id',
      'parents',
      'stage',
      'method',
      'method_version',
      'config_digest',
      'dataset',
      'dataset_id',
      'arch',
      'seed',
    )
  }
  base = {'status': 'done', 'finite': True, 'oracle_used': False}
  return zoo.record(
    **(base | facts | zoo.environment.facts() | {'ckpt_ref': card.name})
    | fields
  )


def finished(context: cli.Context, run_id: str) -> zoo.Artefact | None:
  """The artefact of a run that need not be repeated."""
  if context.force or not zoo.exists(context.workdir, run_id):
    return None
  artefact = zoo.open(context.workdir, run_id)
  if not zoo.records.holds(context.records, run_id):
    record = zoo.load_metrics(artefact)['record']
    zoo.records.append(context.records, record)
  return artefact
