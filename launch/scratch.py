"""Training from scratch: what clean and attacked models have in common."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax import keys, training, types, zoo
from launch import cli, results, show, world


class Job(NamedTuple):
  """One model to train.

  Attributes:
    stage: 'clean' or 'attack'.
    method: name of the attack, 'clean' for none.
    settings: fully resolved, part of the identity.
    recipe: how it is trained.
    phases: the training; the last one is what every method has.
    attack: the attack, None for a clean model.
  """

  stage: str
  method: str
  settings: dict[str, Any]
  recipe: training.RecipeHParams
  phases: tuple[types.Phase, ...]
  attack: types.Attack | None = None


def run(config: Any, context: cli.Context, here: world.World, job: Job):
  """Trains, evaluates and stores one model.

  Args:
    config: has `seed`; is stored with the model.
    context: where and how.
    here: data and network.
    job: what to train.

  Returns:
    The artefact, the old one if this run is finished already.
  """
  run_id = identity(config, here, job)
  done = finished(context, job, run_id)
  if done is not None:
    return done
  carry, curves, timer = _train(config, context, here, job, run_id)
  cost = timer.cost(num_steps(curves) * job.recipe.batch_size)
  return store(config, context, here, job, carry, curves, cost)


def identity(config: Any, here: world.World, job: Job) -> str:
  """The name of a run."""
  return zoo.run_id(
    job.stage,
    job.method,
    1,
    job.settings,
    here.dataset_id,
    config.seed,
    arch=here.arch,
    arch_options=here.arch_options,
  )


def finished(context: cli.Context, job: Job, run_id: str):
  """The artefact of a run that is finished already, else None."""
  done = results.finished(context, run_id)
  if done is not None:
    show.done(f'{job.method} model {done.name}: finished before')
  return done


def num_steps(curves: Mapping[str, Any]) -> int:
  """Steps of all phases of a single model."""
  return sum(len(curve['loss']) for curve in curves.values())


def store(
  config: Any,
  context: cli.Context,
  here: world.World,
  job: Job,
  carry: types.Carry,
  curves: Mapping[str, Any],
  cost: Mapping[str, Any],
) -> zoo.Artefact:
  """Evaluates and stores a trained model.

  Args:
    config: as for `run`.
    context: where and how.
    here: data and network.
    job: what was trained.
    carry: the model; of an attack, its state as `extra`.
    curves: metrics of each phase, [steps].
    cost: fields of the record on time and on how it was run.

  Returns:
    The artefact.
  """
  victim = None
  facts: dict[str, Any] = {}
  if job.attack is not None:
    victim = world.Victim(here, None, job.attack, carry.extra, carry.model)
    facts = _attack_facts(job, carry.extra)
  rates = world.rates(here, carry.model, victim)
  card = results.card(
    here,
    config,
    run_id=identity(config, here, job),
    stage=job.stage,
    method=job.method,
    settings=job.settings,
    metrics=rates,
    attack=facts,
  )
  state = {'model': carry.model}
  artefact = results.finish(
    context,
    card,
    state=state | ({'attack': carry.extra} if victim else {}),
    arrays=_curves(job, curves),
    config=config.to_dict(),
    metrics=rates,
    record=results.record(
      card,
      **rates,
      **facts,
      **cost,
      steps=num_steps(curves),
      epochs=job.recipe.epochs,
    ),
  )
  show.done(f'{job.method} model {artefact.name}: {summary(rates)}')
  return artefact


def _train(config, context, here, job, run_id):
  """(carry, curves, timer) after all phases."""
  train, key = here.dataset.train, keys.root(config.seed)
  extra: Any = {}
  if job.attack is not None:
    extra = job.attack.init(
      keys.stream(key, 'attack'), np.asarray(train.images), train.labels
    )
  model = here.classifier.init(keys.stream(key, 'init'))
  with show.bar(f'{job.method} · {here.spec.name}') as (on_chunk, timer):
    carry, curves = training.run_phases(
      job.phases,
      types.Carry(model=model, extra=extra),
      {'train': training.make_feed(train.images, train.labels)},
      key,
      augment=here.augment,
      names=[f'{job.method} model {run_id}'],
      on_chunk=on_chunk,
      snapshots=zoo.Progress(context.workdir, run_id),
      snapshot_seconds=context.snapshot_seconds,
      devices=context.devices,
    )
  return carry, curves, timer


def _curves(job: Job, curves) -> dict[str, Any]:
  """'curves/loss' of the last phase, 'curves/<phase>/loss' of those before."""
  *others, last = (phase.name for phase in job.phases)
  own = {f'curves/{name}': values for name, values in curves[last].items()}
  return own | results.flat_curves({name: curves[name] for name in others})


def _attack_facts(job: Job, state: types.AttackState) -> dict[str, Any]:
  """The record fields that describe the backdoor."""
  assert job.attack is not None
  info = job.attack.info
  poisoned = int(jnp.sum(state.kind == types.POISONED))
  return {
    'attack': job.method,
    'label_mode': info.label_mode,
    'target_label': info.target_label,
    'poison_ratio': info.poison_ratio,
    'cover_ratio': info.cover_ratio,
    'num_poison': poisoned if info.fixed_subset else None,
  }


def summary(rates: Mapping[str, Any]) -> str:
  """'C-Acc 0.9861, ASR 1.0000, R-Acc 0.0000', without what is missing."""
  named = (('C-Acc', 'c_acc'), ('ASR', 'asr'), ('R-Acc', 'r_acc'))
  known = [(head, rates[k]) for head, k in named if rates[k] is not None]
  return ', '.join(f'{head} {value:.4f}' for head, value in known)
