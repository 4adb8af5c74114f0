"""Implants many backdoors at once: attacks × ratios as one stack.

python -m launch.pack --config=configs/attacks/pack.py:dataset=digits16

Every model is the one that `launch.attack` makes of the same settings, and is
stored under the same name; what is finished already is left out.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from bdjax import attacks, keys, sweep, training, tree, types, zoo
from launch import attack, cli, scratch, show, world


class _Member(NamedTuple):
  """One of the models: its config as `launch.attack` takes it."""

  config: Any
  job: scratch.Job
  run_id: str


def main(config, context: cli.Context) -> list[zoo.Artefact]:
  """Trains, evaluates and stores a model per attack and ratio.

  Args:
    config: see configs/attacks/pack.py.
    context: where and how.

  Returns:
    The artefacts, attack by attack; old ones of runs that are finished.

  Raises:
    ValueError: if an attack does more than poison a fixed subset.
    NonFiniteError: if models diverged, when all others have been stored.
  """
  if context.num_devices > 1:
    raise ValueError(
      f'`devices={context.num_devices}` spreads the batches of a single model; '
      'spread a pack by --config.exec.mode=shard.'
    )
  here = world.of_config(config, context)
  made, todo = {}, []
  for member in _members(config, context, here):
    made[member.run_id] = scratch.finished(context, member.job, member.run_id)
    if made[member.run_id] is None:
      todo.append(member)
  if todo:
    made |= _train(config, context, here, todo)
  return list(made.values())


def _members(config, context, here) -> list[_Member]:
  """All attacks at all ratios."""
  found = []
  for name in config.attacks:
    for ratio in config.ratios:
      one = config[name].copy_and_resolve_references()
      one.update({k: config[k] for k in ('seed', 'data', 'arch', 'train')})
      one.method.poison_ratio = ratio
      job = attack.job_of(one, context, here)
      found.append(_Member(one, job, scratch.identity(one, here, job)))
  return found


def _train(config, context, here, members) -> dict[str, zoo.Artefact]:
  """One program for all; stores each member on its own."""
  train, key = here.dataset.train, keys.root(config.seed)
  states = [
    m.job.attack.init(
      keys.stream(key, 'attack'), np.asarray(train.images), train.labels
    )
    for m in members
  ]
  packed = attacks.pack(
    [(m.job.attack, state) for m, state in zip(members, states, strict=True)],
    train.images,
    train.labels,
    key=keys.stream(key, 'pack'),
  )
  run_ids = [m.run_id for m in members]
  model = here.classifier.init(keys.stream(key, 'init'))
  stack = tree.stack([model] * len(members), run_ids)
  recipe = members[0].job.recipe
  title = f'{" + ".join(config.attacks)} · {len(members)} models'
  progress = zoo.Progress(context.workdir, zoo.digest.digest(run_ids))
  with show.bar(title) as (on_chunk, timer):
    carry, curves = training.run_phases(
      attack.phases_of(here, packed.attack, recipe),
      types.Carry(model=stack, extra=packed.states),
      {'train': training.make_feed(train.images, train.labels)},
      key,
      augment=here.augment,
      lift=functools.partial(sweep.lift, exec=cli.execution(config)),
      names=run_ids,
      on_chunk=on_chunk,
      snapshots=progress,
      snapshot_seconds=context.snapshot_seconds,
    )
  finite = training.finite_members(curves, stacked=True)
  made, cost = {}, _cost(curves, timer, config, members)
  for i, member in enumerate(members):
    if not finite[i]:
      continue
    # The attack's own state goes with the model, not the pack's images of it.
    mine = types.Carry(model=tree.take(carry.model, i), extra=states[i])
    own = tree.take(curves, i)
    made[member.run_id] = scratch.store(
      member.config, context, here, member.job, mine, own, cost
    )
  progress.clear()
  if not np.all(finite):
    bad = ', '.join(np.array(run_ids)[~finite])
    raise training.NonFiniteError(
      f'The loss of {bad} left the finite numbers; lower `train.lr`. The '
      f'other {int(np.sum(finite))} models are stored.'
    )
  return made


def _cost(curves, timer, config, members) -> dict[str, Any]:
  """A member's share of the time, and how it was run."""
  lanes = len(members)
  steps = scratch.num_steps(tree.take(curves, 0))
  spent = timer.cost(steps * members[0].job.recipe.batch_size * lanes)
  shared = {name: spent[name] / lanes for name in ('run_s', 'compile_s')}
  how = {'exec_mode': config.exec.mode, 'pack_size': lanes}
  return spent | shared | how


if __name__ == '__main__':
  cli.run(main, 'configs/attacks/pack.py')
