"""Implants a backdoor: trains a model under an attack.

python -m launch.attack --config=configs/attacks/badnets.py:dataset=digits16
"""

from bdjax import data, registry, training, zoo
from launch import cli, scratch, world


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
  job = scratch.Job('attack', config.name, settings, recipe, phase, attack)
  return scratch.run(config, context, here, job)


if __name__ == '__main__':
  cli.run(main, 'configs/attacks/badnets.py')
