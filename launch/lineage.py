"""Families of artefacts: defended models, their victims, their clean model."""

import functools
from typing import NamedTuple

import jax
from absl import flags

from bdjax import defenses, registry, types, zoo
from launch import cli, starts, world

CLEAN = flags.DEFINE_string(
  'clean', None, 'Clean model to compare with; default: the one in --workdir.'
)


class Child(NamedTuple):
  """One defended model.

  Attributes:
    artefact: the defended artefact.
    model: its weights.
    classifier: as deployed.
  """

  artefact: zoo.Artefact
  model: types.ModelState
  classifier: types.Classifier


class Family(NamedTuple):
  """All defended models of one victim.

  Attributes:
    here: data and network.
    victim: the attacked model they come from.
    children: the defended models.
  """

  here: world.World
  victim: world.Victim
  children: list[Child]


def families(config, context: cli.Context, parents: str | None) -> list[Family]:
  """Defended models that match a pattern, grouped by their victim.

  Args:
    config: has `dataset`.
    context: where and how.
    parents: pattern of defended models.

  Returns:
    One family per victim, in the order of the pattern.
  """
  found = starts.find(config, context, parents, 'defend')
  written = tuple((a.name, a.card.time_utc) for a in found)
  return list(_loaded(context._replace(force=False), written))


@functools.lru_cache(maxsize=1)
def _loaded(context: cli.Context, written: tuple) -> tuple[Family, ...]:
  """Families of these artefacts; kept, since a study asks once per instrument.

  Args:
    context: where they are.
    written: names, and when they were written: `--force` makes others.
  """
  found = [zoo.open(context.workdir, name) for name, _ in written]
  here = world.of_card(found[0].card, context)
  groups: dict[str, list[zoo.Artefact]] = {}
  for artefact in found:
    groups.setdefault(artefact.card.parents[0], []).append(artefact)
  made = []
  for run_id, group in groups.items():
    victim = world.victim(zoo.open(context.workdir, run_id), here)
    children = [_child(artefact, here, victim) for artefact in group]
    made.append(Family(here, victim, children))
  return tuple(made)


def _child(
  artefact: zoo.Artefact, here: world.World, victim: world.Victim
) -> Child:
  """Loads a defended model and what its defense deploys."""
  card = artefact.card
  model = world.load_model(artefact, here)
  entry = registry.get(defenses.REGISTRY, card.method, 'defense')
  hp = registry.make_hparams(entry.hparams, card.hparams['method'])
  defense = starts.make_defense(entry, here, hp, victim)
  extra = {}
  if 'extra' in card.state:
    extra = zoo.load_state(
      artefact, {'extra': _abstract_extra(defense, model, card)}
    )['extra']
  return Child(artefact, model, defense.deploy(here.classifier, extra))


def _abstract_extra(defense, model, card):
  """Shapes of what a defense left behind."""
  carry = types.Carry(model=model, extra={})
  for phase in defense.phases:
    through = lambda c, phase=phase: phase.finish(
      phase.init(jax.random.key(0), c)
    )
    carry = jax.eval_shape(through, carry)
  return carry.extra


def clean_model(
  context: cli.Context, here: world.World, command: str
) -> tuple[zoo.Artefact, types.ModelState]:
  """The clean model that goes with a world.

  Args:
    context: where to look.
    here: data and network it must share.
    command: who asks, for the message.

  Returns:
    (artefact, weights); of several the one with the lowest seed.

  Raises:
    ValueError: if there is none, with the command that trains one.
  """
  wanted = dict(arch_options=here.arch_options, dataset_id=here.dataset_id)
  pattern = CLEAN.value if flags.FLAGS.is_parsed() else None
  if not pattern:
    wanted['method'] = 'clean'  # not a robust one that an attack was crafted on
  try:
    found = zoo.find(
      context.workdir,
      pattern or f'clean/{here.spec.name}/{here.arch}/*',
      stage='clean',
      **wanted,
    )
  except FileNotFoundError as error:
    options = f'dataset={here.spec.name},arch={here.arch}'
    options += ''.join(f',{k}={v}' for k, v in here.arch_options.items())
    subset = here.facts['subset']
    options += ''.join(f',{k}={v}' for k, v in subset.items() if v is not None)
    raise ValueError(
      f'{command} compares with a clean model of the same data and network, '
      f'and there is none. Train one: python -m launch.train '
      f'--config=configs/training/clean.py:{options} '
      f'--workdir={context.workdir}'
    ) from error
  first = min(found, key=lambda artefact: artefact.card.seed)
  return first, world.load_model(first, here)
