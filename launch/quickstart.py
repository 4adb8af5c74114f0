"""The whole question in one command, on embedded real images.

Trains a clean and a backdoored model, defends it twice, measures the backdoor
existence coefficient, re-activates the backdoor with all controls, walks the
linear path, and reports.

python -m launch.quickstart --workdir=DIR
"""

import time

from bdjax import zoo
from launch import (
  attack,
  cli,
  connect,
  defend,
  existence,
  reactivate,
  report,
  show,
  train,
)


def main(config, context: cli.Context) -> list[dict]:
  """Runs all stages; finished ones are taken from the workdir.

  Args:
    config: see configs/quickstart.py; its `seed` goes to all stages.
    context: where and how.

  Returns:
    The rows of the report.
  """
  began = time.monotonic()
  for stage in config.values():
    if hasattr(stage, 'seed'):
      stage.seed = config.seed
  made = [train.main(config.clean, context)]
  attacked = attack.main(config.attack, context)
  made.append(attacked)
  defended = []
  for name in ('ft', 'ft_sam'):
    defended += defend.main(config[name], context, attacked.name)
  parents = ','.join(artefact.name for artefact in defended)
  made += defended
  made += existence.main(config.existence, context, parents)
  made += reactivate.main(config.reactivate, context, parents)
  made += connect.main(config.connect, context, parents)
  mine = {artefact.card.run_id for artefact in made}
  records = zoo.records.read(context.records)
  rows = report.write(
    context.workdir, [r for r in records if r['run_id'] in mine]
  )
  show.done(f'quickstart took {time.monotonic() - began:.0f} s')
  return rows


if __name__ == '__main__':
  cli.run(main, 'configs/quickstart.py')
