"""Trains a clean model.

python -m launch.train --config=configs/training/clean.py:dataset=digits16
"""

from bdjax import registry, training, zoo
from launch import cli, scratch, world


def main(config, context: cli.Context) -> zoo.Artefact:
  """Trains, evaluates and stores one clean model.

  Args:
    config: see configs/training/clean.py; with `adversary`, as in
      configs/training/robust.py, the model is trained adversarially.
    context: where and how.

  Returns:
    The artefact, the old one if this run is finished already.
  """
  here = world.of_config(config, context)
  recipe = registry.make_hparams(training.RecipeHParams, config.train)
  adversary = registry.make_hparams(
    training.AdversaryHParams, config.get('adversary', {'num_steps': 0})
  )
  settings, name = {'train': recipe}, 'clean'
  if adversary.num_steps:
    settings, name = settings | {'adversary': adversary}, 'robust'
  phase = training.adversarial(
    here.classifier,
    training.optimizer(recipe),
    adversary,
    name='train',
    num_epochs=recipe.epochs,
    batch_size=recipe.batch_size,
    reads='train',
    augment=True,
  )
  job = scratch.Job('clean', name, settings, recipe, (phase,))
  return scratch.run(config, context, here, job)


if __name__ == '__main__':
  cli.run(main, 'configs/training/clean.py')
