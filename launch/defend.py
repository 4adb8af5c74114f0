"""Defends attacked models, all that match a pattern, as one stack.

python -m launch.defend --config=configs/defenses/ft_sam.py:dataset=digits16 \
  --parents='attacked/digits16/*'
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from bdjax import (
  data,
  defenses,
  eval,
  keys,
  registry,
  sweep,
  training,
  tree,
  types,
  zoo,
)
from launch import cli, show, world

PARENTS = flags.DEFINE_string(
  'parents', None, 'Attacked models: a pattern, or several joined by commas.'
)


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Defends every parent that has not been defended in this way.

  Args:
    config: see configs/defenses/ft_sam.py.
    context: where and how.
    parents: pattern of attacked models; None = the flag.

  Returns:
    The artefacts, in the order of the parents.
  """
  found = find_parents(config, context, parents or PARENTS.value, 'attack')
  entry = registry.get(defenses.REGISTRY, config.name, 'defense')
  hp = registry.make_hparams(entry.hparams, config.method)
  settings = {
    'method': hp,
    'clean_ratio': config.clean_ratio,
    'sampler': config.sampler,
  }
  run_ids = [_run_id(config, settings, parent.card) for parent in found]
  known = [world.finished(context, run_id) for run_id in run_ids]
  todo = [i for i, artefact in enumerate(known) if artefact is None]
  for artefact in known:
    if artefact is not None:
      show.done(f'defended model {artefact.name}: finished before')
  if todo:
    victims = [found[i] for i in todo]
    made = _defend(
      config,
      context,
      entry.make,
      hp,
      settings,
      victims,
      [run_ids[i] for i in todo],
    )
    for i, artefact in zip(todo, made, strict=True):
      known[i] = artefact
  return known


def find_parents(config, context, pattern: str | None, stage: str) -> list:
  """Artefacts that match a pattern, alike and of the config's data set.

  Raises:
    ValueError: without a pattern, or if models or data sets do not go
      together.
  """
  if not pattern:
    raise ValueError(
      f'--parents is empty; name the models to start from, such as '
      f"--parents='{zoo.cards.KIND_OF_STAGE[stage]}/*'."
    )
  found = zoo.find(context.workdir, pattern, stage=stage)
  zoo.check_alike([artefact.card for artefact in found])
  dataset = found[0].card.dataset
  if config.dataset != dataset:
    raise ValueError(
      f"The config holds the values of dataset='{config.dataset}', but the "
      f"parents were trained on '{dataset}'; add ':dataset={dataset}' to "
      '--config.'
    )
  return found


def _run_id(config, settings, card: zoo.Card) -> str:
  return zoo.run_id(
    'defend',
    config.name,
    1,
    settings,
    card.dataset_id,
    config.seed,
    [card.run_id],
  )


def _defend(config, context, make, hp, settings, parents, run_ids) -> list:
  """Runs one defense over a stack of victims."""
  here = world.of_card(parents[0].card, context)
  victims = [world.victim(parent, here) for parent in parents]
  key, train = keys.root(config.seed), here.dataset.train
  reserved = data.reserve_clean(
    keys.stream(key, 'subset'),
    train.labels,
    config.clean_ratio,
    sampler=config.sampler,
  )
  defense = make(here.classifier, hp)
  models = [victim.model for victim in victims]
  stacked = len(models) > 1
  lift = functools.partial(sweep.lift, exec=cli.execution(config))
  progress = zoo.Progress(context.workdir, zoo.digest.digest(run_ids))
  title = f'{config.name} · {len(victims)} model' + 's' * stacked
  with show.bar(title) as (on_chunk, timer):
    carry, curves = training.run_phases(
      defense.phases,
      types.Carry(
        model=tree.stack(models, run_ids) if stacked else models[0], extra={}
      ),
      {'clean': training.make_feed(train.images, train.labels, reserved)},
      key,
      augment=here.augment,
      lift=lift if stacked else None,
      names=run_ids,
      on_chunk=on_chunk,
      snapshots=progress,
      snapshot_seconds=context.snapshot_seconds,
    )
  finite = training.finite_members(curves, stacked)
  shared = {
    'clean_ratio': config.clean_ratio,
    'num_clean': len(reserved),
    'reserve_id': zoo.digest.digest(reserved),
    'exec_mode': config.exec.mode,
    'pack_size': len(victims),
    **_cost(defense, curves, timer, len(victims)),
  }
  lane = _Lane(config, context, here, defense, settings, reserved, shared)
  made = []
  for i, (victim, run_id) in enumerate(zip(victims, run_ids, strict=True)):
    take = lambda x, i=i: x[i] if stacked else x
    mine, my_curves = jax.tree.map(take, (carry, curves))
    made.append(lane.store(victim, run_id, mine, my_curves, bool(finite[i])))
  progress.clear()
  return made


def _cost(defense, curves, timer, lanes: int) -> dict:
  """Steps, and seconds divided among the lanes of a stack."""
  done = {
    phase.name: next(iter(curves[phase.name].values())).shape[-1]
    for phase in defense.phases
    if phase.name in curves
  }
  examples = sum(
    done.get(phase.name, 0) * phase.batch_size for phase in defense.phases
  )
  spent = timer.cost(examples * lanes)
  for name in ('run_s', 'compile_s'):
    spent[name] /= lanes
  return spent | {'steps': sum(done.values())}


class _Lane(NamedTuple):
  """What is the same for all models of a stack when they are stored."""

  config: Any
  context: cli.Context
  here: world.World
  defense: types.Defense
  settings: dict
  reserved: np.ndarray
  shared: dict

  def store(self, victim, run_id, carry, curves, finite) -> zoo.Artefact:
    """Evaluates and stores one defended model."""
    parent = victim.artefact.card
    classifier = self.defense.deploy(self.here.classifier, carry.extra)
    rates = world.rates(self.here, carry.model, victim, classifier=classifier)
    ratings = _ratings(parent.metrics, rates)
    rates = rates | {'finite': finite and rates['finite']}
    card = self.card(run_id, parent, rates)
    state = {'model': carry.model}
    if jax.tree.leaves(carry.extra):
      state['extra'] = carry.extra
    artefact = world.finish(
      self.context,
      card,
      state=state,
      arrays={
        f'curves/{phase}/{name}': values
        for phase, of_phase in curves.items()
        for name, values in of_phase.items()
      },
      config=self.config.to_dict(),
      metrics=rates | ratings,
      record=world.record(
        card,
        **rates,
        **ratings,
        **self.shared,
        **world.attack_facts(parent),
        defense=self.config.name,
        defense_stage='post_training',
      ),
    )
    show.done(
      f'{self.config.name} of {parent.method} {artefact.name}: '
      f'C-Acc {rates["c_acc"]:.4f}, ASR {parent.metrics["asr"]:.4f} → '
      f'{rates["asr"]:.4f}, DER {ratings["der"]:.4f}'
    )
    return artefact

  def card(self, run_id, parent: zoo.Card, rates) -> zoo.Card:
    """The card of one defended model."""
    reserve = {'reserved': self.reserved, 'reserved_from': 'train'}
    return zoo.Card(
      run_id=run_id,
      stage='defend',
      method=self.config.name,
      dataset=parent.dataset,
      dataset_id=parent.dataset_id,
      arch=parent.arch,
      arch_options=parent.arch_options,
      num_classes=parent.num_classes,
      seed=self.config.seed,
      parents=(parent.run_id,),
      config_digest=zoo.digest.digest(self.settings),
      hparams=self.settings,
      attack=parent.attack,
      data=parent.data | reserve,
      versions=zoo.environment.versions(),
      metrics=rates,
      time_utc=zoo.environment.time_utc(),
    )


def _ratings(before, after) -> dict:
  """DER and RIR against the attacked model, and its rates."""
  accuracy = before['c_acc'], after['c_acc']
  return {
    'der': eval.der(before['asr'], after['asr'], *accuracy),
    'rir': eval.rir(before['r_acc'], after['r_acc'], *accuracy),
    **{f'base_{k}': before[k] for k in ('c_acc', 'asr', 'r_acc')},
  }


if __name__ == '__main__':
  cli.run(main, 'configs/defenses/ft.py')
