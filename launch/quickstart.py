"""The whole question in one command, on embedded real images.

Trains a clean and a backdoored model, defends it twice, measures the backdoor
existence coefficient, re-activates the backdoor with all controls, walks the
linear path, and reports: the smallest study.

python -m launch.quickstart --workdir=DIR
"""

import time

from launch import cli, show, study


def main(config, context: cli.Context) -> list[dict]:
  """Runs all stages; finished ones are taken from the workdir.

  Args:
    config: see configs/quickstart.py; its `seed` goes to all stages.
    context: where and how.

  Returns:
    The rows of the report.
  """
  began = time.monotonic()
  rows = study.run(config, context)
  show.done(f'quickstart took {time.monotonic() - began:.0f} s')
  return rows


if __name__ == '__main__':
  cli.run(main, 'configs/quickstart.py')
