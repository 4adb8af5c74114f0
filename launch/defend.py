"""Defends attacked models, all that match a pattern, as one stack.

python -m launch.defend --config=configs/defenses/ft_sam.py:dataset=digits16 \
  --parents='attacked/digits16/*'
"""

import functools

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
from launch import train as clean_training

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
  stacked = len(victims) > 1
  carry = types.Carry(
    model=tree.stack([v.model for v in victims], run_ids)
    if stacked
    else victims[0].model,
    extra={},
  )
  exec = cli.execution(config)
  title = f'{config.name} · {len(victims)} model' + 's' * stacked
  with show.bar(title) as (on_chunk, timer):
    carry, curves = training.run_phases(
      defense.phases,
      carry,
      {'clean': training.make_feed(train.images, train.labels, reserved)},
      key,
      augment=here.augment,
      lift=functools.partial(sweep.lift, exec=exec) if stacked else None,
      names=run_ids,
      on_chunk=on_chunk,
      snapshots=zoo.Progress(context.workdir, zoo.digest.digest(run_ids)),
    )
  carries = tree.unstack(carry) if stacked else [carry]
  finite = training.finite_members(curves, stacked)
  made = []
  for i, victim in enumerate(victims):
    member = jax.tree.map(lambda x, i=i: x[i] if stacked else x, curves)
    result = _Result(
      carries[i], member, bool(finite[i]), timer, len(victims), reserved
    )
    made.append(
      _store(
        config, context, here, defense, settings, victim, run_ids[i], result
      )
    )
  zoo.Progress(context.workdir, zoo.digest.digest(run_ids)).clear()
  return made


class _Result:
  """What came out of one lane of the stack."""

  def __init__(self, carry, curves, finite, timer, lanes, reserved):
    self.carry, self.curves, self.finite = carry, curves, finite
    self.timer, self.lanes, self.reserved = timer, lanes, reserved


def _store(config, context, here, defense, settings, victim, run_id, result):
  """Evaluates and stores one defended model."""
  card, carry = victim.artefact.card, result.carry
  classifier = defense.deploy(here.classifier, carry.extra)
  rates = world.rates(here, carry.model, victim, classifier=classifier)
  before = card.metrics
  ratings = {
    'der': eval.der(
      before['asr'], rates['asr'], before['c_acc'], rates['c_acc']
    ),
    'rir': eval.rir(
      before['r_acc'], rates['r_acc'], before['c_acc'], rates['c_acc']
    ),
    'base_c_acc': before['c_acc'],
    'base_asr': before['asr'],
    'base_r_acc': before['r_acc'],
  }
  reserve = {
    'clean_ratio': config.clean_ratio,
    'num_clean': len(result.reserved),
    'reserve_id': zoo.digest.digest(result.reserved),
  }
  steps = sum(len(next(iter(c.values()))) for c in result.curves.values())
  examples = sum(
    len(next(iter(result.curves[p.name].values()))) * p.batch_size
    for p in defense.phases
    if p.name in result.curves
  )
  own = zoo.Card(
    run_id=run_id,
    stage='defend',
    method=config.name,
    dataset=card.dataset,
    dataset_id=card.dataset_id,
    arch=card.arch,
    arch_options=card.arch_options,
    num_classes=card.num_classes,
    seed=config.seed,
    parents=(card.run_id,),
    config_digest=zoo.digest.digest(settings),
    hparams=settings,
    attack=card.attack,
    data=card.data
    | {'reserved': np.asarray(result.reserved), 'reserved_from': 'train'},
    versions=zoo.environment.versions(),
    metrics=rates,
    time_utc=zoo.environment.time_utc(),
  )
  state = {'model': carry.model}
  if jax.tree.leaves(carry.extra):
    state['extra'] = carry.extra
  spent = clean_training.cost(result.timer, examples * result.lanes)
  spent['run_s'] /= result.lanes
  spent['compile_s'] /= result.lanes
  artefact = world.finish(
    context,
    own,
    state=state,
    arrays={
      f'curves/{phase}/{name}': values
      for phase, curves in result.curves.items()
      for name, values in curves.items()
    },
    config=config.to_dict(),
    metrics=rates | ratings,
    record=world.record(
      own,
      **rates | {'finite': result.finite and rates['finite']},
      **ratings,
      **reserve,
      **world.attack_facts(card),
      **spent,
      defense=config.name,
      defense_stage='post_training',
      steps=steps,
      exec_mode=config.exec.mode,
      pack_size=result.lanes,
    ),
  )
  show.done(
    f'{config.name} of {card.method} {artefact.name}: '
    f'C-Acc {rates["c_acc"]:.4f}, ASR {before["asr"]:.4f} → '
    f'{rates["asr"]:.4f}, DER {ratings["der"]:.4f}'
  )
  return artefact


if __name__ == '__main__':
  cli.run(main, 'configs/defenses/ft.py')
