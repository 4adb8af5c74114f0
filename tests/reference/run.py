"""Runs the published setting and holds it against the published figures.

python -m tests.reference.run --workdir=DIR --data_dir=DIR

Full CIFAR-10, PreAct-ResNet18 of width 64, 10 % poisoning, 5 % clean data: for
a GPU. Every stage is a launcher of its own; a run that was cut off goes on
where it was, and what is finished is not run again. Table and figures are those
of `launch.report`; the comparison goes to tests/reference/results/ as JSON.
All attacks with published figures, without defenses:

python -m tests.reference.run --workdir=DIR --data_dir=DIR --attacks=all \\
  --defenses=none

A rehearsal on any machine, without figures to compare with:

python -m tests.reference.run --workdir=DIR --dataset=synthetic --quick \\
  --defenses=ft
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Sequence

import jax

from bdjax import zoo
from tests.reference import published

RESULTS = pathlib.Path(__file__).parent / 'results'


def commands(
  dataset: str,
  attacks: list[str],
  defenses: list[str],
  *,
  options: str = '',
  quick: bool = False,
) -> list[list[str]]:
  """Launchers with their own flags, in order.

  Args:
    dataset: registry key.
    attacks: registry keys.
    defenses: registry keys; none = the attacks alone.
    options: further options of the configs of models.
    quick: whether all configs take their small settings.

  Returns:
    Per stage its words; `--workdir` and `--data_dir` are the caller's.
  """

  def config(name, *more):
    given = (f'dataset={dataset}', 'quick' if quick else '', *more)
    return f'--config=configs/{name}.py:{",".join(filter(None, given))}'

  attacked, defended = (
    f'--parents={kind}/{dataset}/*' for kind in ('attacked', 'defended')
  )
  report = ['report', f'--only={dataset}']
  models = [['train', config('training/clean', options)]]
  for name in attacks:
    line = ['attack', config(f'attacks/{name}', options)]
    if name in published.RATIOS and dataset == 'cifar10':
      line.append(f'--config.method.poison_ratio={published.RATIOS[name]}')
    models.append(line)
  if not defenses:
    return [*models, report]
  methods = f'methods={"+".join(defenses)}'
  return [
    *models,
    ['defend', config('defenses/suite', methods), attacked],
    ['existence', config('existence/bec'), defended],
    ['reactivate', config('reactivation/white_box'), defended],
    report,
  ]


def main(arguments: list[str] | None = None) -> None:
  """Runs all stages and writes the comparison."""
  given = _parser().parse_args(arguments)
  where = [f'--workdir={given.workdir}']
  if given.data_dir:
    where.append(f'--data_dir={given.data_dir}')
  for stage, *words in commands(
    given.dataset,
    _names(given.attacks, all=published.ATTACKS),
    _names(given.defenses, none=()),
    options=given.options,
    quick=given.quick,
  ):
    line = [sys.executable, '-m', f'launch.{stage}', *words, *where]
    print(' '.join(line[1:]), flush=True)
    code = subprocess.run(line, check=False).returncode
    if code:  # the launcher has said what is wrong
      sys.exit(code)
  records = zoo.records.read(given.workdir / 'records.jsonl')
  rows = zoo.tables.rows([r for r in records if r['dataset'] == given.dataset])
  found = published.compare(rows) if given.dataset == 'cifar10' else []
  print(published.to_markdown(found))
  print(f'written: {write(given, rows, found)}')


def _names(text: str, **words: Sequence[str]) -> list[str]:
  """What a flag lists: 'a+b', or a word that stands for a list."""
  return list(words.get(text, text.split('+')))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--workdir', type=pathlib.Path, default='runs')
  parser.add_argument('--data_dir', help='as that of the launchers')
  parser.add_argument('--dataset', default='cifar10')
  parser.add_argument('--attacks', default='badnets+blended')
  parser.add_argument('--defenses', default='ft+ft_sam+fp+nad+nc+i_bau+clp')
  parser.add_argument(
    '--options', default='', help="of the models, as 'width=16,epochs=40'"
  )
  parser.add_argument('--quick', action='store_true', help='small settings')
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS)
  return parser


def write(given: argparse.Namespace, rows, found) -> pathlib.Path:
  """Writes rows and comparisons as JSON with all that they depend on."""
  device = jax.devices()[0].device_kind
  name = re.sub(r'\W+', '-', device).strip('-').lower()
  path = given.results / f'{given.dataset}-{name}.json'
  columns = [column for column, _, _ in zoo.tables.COLUMNS]
  content = {
    'versions': zoo.environment.versions()
    | {'code': zoo.environment.code_version(), 'device': device},
    'dataset': given.dataset,
    'options': given.options,
    'quick': given.quick,
    'rows': [{k: row.get(k) for k in (*columns, 'seed')} for row in rows],
    'comparison': [one._asdict() for one in found],
  }
  given.results.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
  return path


if __name__ == '__main__':
  main()
