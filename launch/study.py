"""A study: attacks × defenses under every instrument, and what follows.

Trains a clean model and one per attack, defends each by every defense,
measures existence, re-activates with all controls, retunes, walks the paths,
and reports. All attacked models are defended, and all defended ones measured,
as stacks; with `--jobs=2` two processes share each stage.

python -m launch.study --workdir=DIR --jobs=2 \
  --config=configs/studies/dormant.py:dataset=digits16,width=16
"""

import contextlib
import time
from collections.abc import Callable

from bdjax import checks, zoo
from launch import (
  attack,
  cli,
  connect,
  crew,
  defend,
  existence,
  findings,
  reactivate,
  report,
  retuning,
  show,
  train,
)

Made = list[zoo.Artefact]
_IMITATOR = 'qra'  # of the models that the retuning attack leaves


def main(config, context: cli.Context) -> list[dict]:
  """Runs all stages; finished ones are taken from the workdir.

  Args:
    config: see configs/studies/dormant.py; its `seed` goes to all stages.
    context: where and how.

  Returns:
    The rows of the report; none in a process that `--jobs` has started.
  """
  began = time.monotonic()
  if crew.PART.value:
    part = crew.parse(crew.PART.value)
    _stage(part.stage)(_seeded(config), context, part)
    return []
  if crew.JOBS.value > 1:
    for stage, launch in STAGES.items():
      logs = context.workdir / 'logs'
      with crew.beside(stage, crew.JOBS.value, logs) as part:
        launch(_seeded(config), context, part)
    context = context._replace(force=False)  # it is all new
  rows = _report(config, context, quietly=crew.JOBS.value > 1)
  show.done(f'the study took {time.monotonic() - began:.0f} s')
  return rows


def run(config, context: cli.Context) -> list[dict]:
  """As `main`, in this process, without a word on time."""
  return _report(config, context, quietly=False)


def _report(config, context: cli.Context, *, quietly: bool) -> list[dict]:
  """Does what is left to be done, and reports."""
  config, made = _seeded(config), []
  with show.hushed() if quietly else contextlib.nullcontext():
    for stage, launch in STAGES.items():
      made += launch(config, context, crew.Part(stage))
  mine = {artefact.card.run_id for artefact in made}
  records = zoo.records.read(context.records)
  records = [r for r in records if r['run_id'] in mine]
  return report.write(context.workdir, records, findings.summary)


def _stage(name: str) -> Callable[..., Made]:
  checks.one_of(tuple(STAGES), part=name)
  return STAGES[name]


def _train(config, context, part: crew.Part) -> Made:
  """The clean model and the attacked ones."""
  todo = [(train.main, config.clean)]
  todo += [(attack.main, one) for one in config.attacks.values()]
  return [launch(one, context) for launch, one in part.of(todo)]


def _defend(config, context, part: crew.Part) -> Made:
  """Every defense of all attacked models, and variations of some on one."""
  attacked, made, refused = _found('train', config, context)[1:], [], []
  for one, parents in part.of(_defenses(config, attacked)):
    try:
      made += defend.main(one, context, _names(parents))
    except defend.NothingMade as error:
      refused.append(str(error))
  if refused and not made and part.claims is None:
    raise defend.NothingMade('\n'.join(refused))
  return made


def _defenses(config, attacked: Made) -> list[tuple]:
  """[(config of one method, its victims)], the last of each suite first."""
  found = []
  for one in config.get('ablations', {}).values():
    found.append((one, [a for a in attacked if a.card.method == one.attack]))
  for suite in config.defenses.values():
    parts = [suite]
    if 'methods' in suite:
      parts = [suite[name] for name in reversed(suite.methods)]
    for one in parts:
      one.seed = config.seed
      found.append((one, attacked))
  return found


def _measure(config, context, part: crew.Part) -> Made:
  """Every instrument on all defended models."""
  parents = _names(_found('defend', config, context))
  known, first, others = config.reactivations, [], []
  for name in known:
    if name == retuning.METHOD and _IMITATOR in known:
      first.append((reactivate.main, [known[name], known[_IMITATOR]]))
    elif name != _IMITATOR:
      others.append((reactivate.main, [known[name]]))
  # The longest first, so that all processes end at about the same time.
  todo = first + [(connect.main, [one]) for one in config.paths.values()]
  todo += [*others, (existence.main, [config.existence])]
  made = []
  for launch, chain in part.of(todo):
    for one in chain:
      made += launch(one, context, parents)
  return made


# In the order in which they run.
STAGES: dict[str, Callable[..., Made]] = {
  'train': _train,
  'defend': _defend,
  'measure': _measure,
}


def _found(stage: str, config, context: cli.Context) -> Made:
  """All that an earlier stage has made."""
  with show.hushed():
    whole = crew.Part(stage)
    return STAGES[stage](config, context._replace(force=False), whole)


def _seeded(config):
  """The config with its seed in the parts of all stages."""
  groups = ('attacks', 'defenses', 'ablations', 'reactivations', 'paths')
  parts = [config.clean, config.existence]
  for group in groups:
    parts += config.get(group, {}).values()
  for part in parts:
    part.seed = config.seed
  return config


def _names(artefacts) -> str:
  """A pattern of these artefacts, each once."""
  return ','.join(dict.fromkeys(artefact.name for artefact in artefacts))


if __name__ == '__main__':
  cli.run(main, 'configs/studies/dormant.py')
