"""Re-activates the dormant backdoor of defended models, with its controls.

python -m launch.reactivate \
  --config=configs/reactivation/white_box.py:dataset=digits16 \
  --parents='defended/digits16/*'

The same line runs every method of the registry; `qra` starts from what
`retuning_attack` left, so that one comes first. A config with `variants` runs
once per value of the field it names.
"""

from bdjax import reactivation, registry
from launch import (
  cli,
  lineage,
  measure,
  methods,
  perturbing,
  retuning,
  starts,
)


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Attacks every defended model that has not been attacked in this way.

  Args:
    config: see configs/reactivation/white_box.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  parents = parents or starts.PARENTS.value
  made = []
  for one, variant in cli.variants(config):
    made += _one_setting(one, context, parents, variant)
  return made


def _one_setting(config, context, parents, variant) -> list:
  """One method with one set of hyper-parameters on all models."""
  entry = registry.get(reactivation.REGISTRY, config.name, 'reactivation')
  hp = registry.make_hparams(entry.hparams, config.method)
  runner = retuning if entry.info.outputs == 'model' else perturbing
  method, made = methods.Method(entry, hp, cli.execution(config)), []
  for family in lineage.families(config, context, parents):
    clean, model = lineage.clean_model(
      context, family.here, 'launch.reactivate'
    )
    attack = runner.Attack(config, context, method, family, model)
    made += measure.run(
      'reactivate',
      config,
      context,
      attack.settings,
      family,
      attack.run,
      others=lambda child, a=attack, c=clean: (c, *a.parents_of(child)),
      variant=variant,
    )
  return made


if __name__ == '__main__':
  cli.run(main, 'configs/reactivation/white_box.py')
