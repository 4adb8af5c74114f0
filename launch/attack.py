"""Implants a backdoor: trains a model under an attack.

python -m launch.attack --config=configs/attacks/badnets.py:dataset=digits16
"""

import jax.numpy as jnp
import numpy as np

from bdjax import data, keys, registry, training, types, zoo
from launch import cli, show, world
from launch import train as clean_training


def main(config, context: cli.Context) -> zoo.Artefact:
  """Trains, evaluates and stores one attacked model.

  Args:
    config: see configs/attacks/badnets.py.
    context: where and how.

  Returns:
    The artefact, the old one if this run is finished already.
  """
  here = world.of_config(config, context)
  assets = {
    name: data.read_picture(path)
    for name, path in config.get('assets', {}).items()
    if path
  }
  attack, hp = world.make_attack(config.name, config.method, here, assets)
  recipe = registry.make_hparams(training.RecipeHParams, config.train)
  settings = {'method': hp, 'train': recipe}
  if assets:
    pictures = {k: zoo.digest.digest(v) for k, v in assets.items()}
    settings['assets'] = pictures
  run_id = zoo.run_id(
    'attack',
    config.name,
    1,
    settings,
    here.dataset_id,
    config.seed,
    arch=here.arch,
    arch_options=here.arch_options,
  )
  done = world.finished(context, run_id)
  if done is not None:
    show.done(f'attacked model {done.name}: finished before')
    return done
  train, key = here.dataset.train, keys.root(config.seed)
  state = attack.init(
    keys.stream(key, 'attack'), np.asarray(train.images), train.labels
  )
  phase = training.implant(
    here.classifier,
    attack,
    training.optimizer(recipe),
    augment=here.augment,
    name='implant',
    num_epochs=recipe.epochs,
    batch_size=recipe.batch_size,
    reads='train',
  )
  model = here.classifier.init(keys.stream(key, 'init'))
  with show.bar(f'{config.name} · {here.spec.name}') as (on_chunk, timer):
    carry, curves = training.run_phases(
      (phase,),
      types.Carry(model=model, extra=state),
      {'train': training.make_feed(train.images, train.labels)},
      key,
      names=[f'{config.name} model {run_id}'],
      on_chunk=on_chunk,
      snapshots=zoo.Progress(context.workdir, run_id),
      snapshot_seconds=context.snapshot_seconds,
    )
  state = carry.extra
  found = world.Victim(None, attack, state, carry.model)
  rates = world.rates(here, carry.model, found)
  info = attack.info
  facts = {
    'attack': config.name,
    'label_mode': info.label_mode,
    'target_label': info.target_label,
    'poison_ratio': info.poison_ratio,
    'num_poison': int(jnp.sum(state.kind == types.POISONED)),
  }
  card = clean_training.make_card(
    'attack', config.name, run_id, here, config, settings, rates, attack=facts
  )
  steps = len(curves['implant']['loss'])
  artefact = world.finish(
    context,
    card,
    state={'model': carry.model, 'attack': state},
    arrays={f'curves/{k}': v for k, v in curves['implant'].items()},
    config=config.to_dict(),
    metrics=rates,
    record=world.record(
      card,
      **rates,
      **facts,
      **clean_training.cost(timer, steps * recipe.batch_size),
      steps=steps,
      epochs=recipe.epochs,
    ),
  )
  show.done(
    f'attacked model {artefact.name}: C-Acc {rates["c_acc"]:.4f}, '
    f'ASR {rates["asr"]:.4f}, R-Acc {rates["r_acc"]:.4f}'
  )
  return artefact


if __name__ == '__main__':
  cli.run(main, 'configs/attacks/badnets.py')
