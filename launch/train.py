"""Trains a clean model.

python -m launch.train --config=configs/training/clean.py:dataset=digits16
"""

from bdjax import keys, registry, training, types, zoo
from launch import cli, show, world


def main(config, context: cli.Context) -> zoo.Artefact:
  """Trains, evaluates and stores one clean model.

  Args:
    config: see configs/training/clean.py.
    context: where and how.

  Returns:
    The artefact, the old one if this run is finished already.
  """
  here = world.of_config(config, context)
  recipe = registry.make_hparams(training.RecipeHParams, config.train)
  settings = {'train': recipe}
  run_id = zoo.run_id(
    'clean',
    'clean',
    1,
    settings,
    here.dataset_id,
    config.seed,
    arch=here.arch,
    arch_options=here.arch_options,
  )
  done = world.finished(context, run_id)
  if done is not None:
    show.done(f'clean model {done.name}: finished before')
    return done
  train, key = here.dataset.train, keys.root(config.seed)
  phase = training.supervised(
    here.classifier,
    training.optimizer(recipe),
    name='train',
    num_epochs=recipe.epochs,
    batch_size=recipe.batch_size,
    reads='train',
    augment=True,
  )
  model = here.classifier.init(keys.stream(key, 'init'))
  with show.bar(f'clean · {here.spec.name}') as (on_chunk, timer):
    carry, curves = training.run_phases(
      (phase,),
      types.Carry(model=model, extra={}),
      {'train': training.make_feed(train.images, train.labels)},
      key,
      augment=here.augment,
      names=[f'clean model {run_id}'],
      on_chunk=on_chunk,
      snapshots=zoo.Progress(context.workdir, run_id),
      snapshot_seconds=context.snapshot_seconds,
    )
  rates = world.rates(here, carry.model)
  card = make_card('clean', 'clean', run_id, here, config, settings, rates)
  steps = len(curves['train']['loss'])
  artefact = world.finish(
    context,
    card,
    state={'model': carry.model},
    arrays={f'curves/{k}': v for k, v in curves['train'].items()},
    config=config.to_dict(),
    metrics=rates,
    record=world.record(
      card,
      **rates,
      **cost(timer, steps * recipe.batch_size),
      steps=steps,
      epochs=recipe.epochs,
    ),
  )
  show.done(f'clean model {artefact.name}: C-Acc {rates["c_acc"]:.4f}')
  return artefact


def make_card(
  stage, method, run_id, here, config, settings, rates, **more
) -> zoo.Card:
  """The card of a model trained from scratch."""
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
    config_digest=zoo.digest.digest(settings),
    hparams=settings,
    data=here.facts,
    versions=zoo.environment.versions(),
    metrics=rates,
    time_utc=zoo.environment.time_utc(),
    **more,
  )


def cost(timer: show.Timer, examples: int) -> dict[str, float | None]:
  """The record fields on time."""
  rate = examples / timer.run_s if timer.run_s > 0 else None
  return {
    'compile_s': timer.compile_s,
    'run_s': timer.run_s,
    'examples_per_s': rate,
  }


if __name__ == '__main__':
  cli.run(main, 'configs/training/clean.py')
