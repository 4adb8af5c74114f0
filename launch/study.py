"""A study: attacks × defenses under every instrument, and what follows.

Trains a clean model and one per attack, defends each by every defense,
measures existence, re-activates with all controls, retunes, walks the paths,
and reports. All attacked models are defended, and all defended ones measured,
as stacks.

python -m launch.study --workdir=DIR \
  --config=configs/studies/dormant.py:dataset=digits16,width=16
"""

import time

from bdjax import zoo
from launch import (
  attack,
  cli,
  connect,
  defend,
  existence,
  findings,
  reactivate,
  report,
  retuning,
  show,
  train,
)


def main(config, context: cli.Context) -> list[dict]:
  """Runs all stages; finished ones are taken from the workdir.

  Args:
    config: see configs/studies/dormant.py; its `seed` goes to all stages.
    context: where and how.

  Returns:
    The rows of the report.
  """
  began = time.monotonic()
  rows = run(config, context)
  show.done(f'the study took {time.monotonic() - began:.0f} s')
  return rows


def run(config, context: cli.Context) -> list[dict]:
  """As `main`, without a word on time."""
  for stage in _stages(config):
    stage.seed = config.seed
  made = [train.main(config.clean, context)]
  attacked = [attack.main(one, context) for one in config.attacks.values()]
  defended = []
  for one in config.defenses.values():
    defended += defend.main(one, context, _names(attacked))
  for one in config.get('ablations', {}).values():
    chosen = [a for a in attacked if a.card.method == one.attack]
    defended += defend.main(one, context, _names(chosen))
  parents = _names(defended)
  made += attacked + defended
  made += existence.main(config.existence, context, parents)
  # QRA imitates the models that the retuning attack leaves.
  is_later = lambda one: one.name != retuning.METHOD
  for one in sorted(config.reactivations.values(), key=is_later):
    made += reactivate.main(one, context, parents)
  for one in config.paths.values():
    made += connect.main(one, context, parents)
  mine = {artefact.card.run_id for artefact in made}
  records = zoo.records.read(context.records)
  records = [r for r in records if r['run_id'] in mine]
  return report.write(context.workdir, records, findings.summary)


def _stages(config) -> list:
  """The configs of all launchers in a study's."""
  groups = ('attacks', 'defenses', 'ablations', 'reactivations', 'paths')
  stages = [config.clean, config.existence]
  for group in groups:
    stages += config.get(group, {}).values()
  return stages


def _names(artefacts) -> str:
  """A pattern of these artefacts, each once."""
  return ','.join(dict.fromkeys(artefact.name for artefact in artefacts))


if __name__ == '__main__':
  cli.run(main, 'configs/studies/dormant.py')
