"""Trains a clean model.

python -m launch.train --config=configs/training/clean.py:dataset=digits16
"""

from bdjax import registry, training, zoo
from launch import cli, scratch, world


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
  phase = training.supervised(
    here.classifier,
    training.optimizer(recipe),
    name='train',
    num_epochs=recipe.epochs,
    batch_size=recipe.batch_size,
    reads='train',
    augment=True,
  )
  job = scratch.Job('clean', 'clean', {'train': recipe}, recipe, phase)
  return scratch.run(config, context, here, job)


if __name__ == '__main__':
  cli.run(main, 'configs/training/clean.py')
