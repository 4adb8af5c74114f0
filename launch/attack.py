"""Implants a backdoor: trains a model under an attack.

python -m launch.attack --config=configs/attacks/badnets.py:dataset=digits16
"""

from bdjax import registry, training, types, zoo
from launch import assets, cli, scratch, world


def main(config, context: cli.Context) -> zoo.Artefact:
  """Trains, evaluates and stores one attacked model.

  Args:
    config: see configs/attacks/badnets.py.
    context: where and how.

  Returns:
    The artefact, the old one if this run is finished already.
  """
  here = world.of_config(config, context)
  return scratch.run(config, context, here, job_of(config, context, here))


def job_of(config, context: cli.Context, here: world.World) -> scratch.Job:
  """What a config asks for, its assets read or crafted."""
  made = assets.of_run(config, context, here)
  attack, hp = world.make_attack(config.name, config.method, here, made.arrays)
  recipe = registry.make_hparams(training.RecipeHParams, config.train)
  settings = {'method': hp, 'train': recipe, **made.settings}
  phases = phases_of(here, attack, recipe)
  return scratch.Job('attack', config.name, settings, recipe, phases, attack)


def phases_of(
  here: world.World, attack: types.Attack, recipe: training.RecipeHParams
) -> tuple[types.Phase, ...]:
  """The training under an attack."""
  return training.attack_phases(
    here.classifier,
    attack,
    training.optimizer(recipe),
    augment=here.augment,
    name='implant',
    num_epochs=recipe.epochs,
    batch_size=recipe.batch_size,
    reads='train',
  )


if __name__ == '__main__':
  cli.run(main, 'configs/attacks/badnets.py')
