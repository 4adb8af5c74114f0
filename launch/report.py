"""Turns records into a table, a verdict per defense, and figures.

python -m launch.report --workdir=DIR
python -m launch.report --workdir=DIR --gallery
"""

import pathlib
from collections.abc import Callable, Iterable

import rich.box
import rich.table
from absl import flags
from rich import markup

from bdjax import zoo
from launch import cli, figures, gallery, show

STAGE_OF_FIGURE = {
  'heat': 'What each defense leaves of each attack, what it costs in accuracy '
  'and work; the darker, the worse.',
  'images': 'Clean, triggered and perturbed images; Δ is the perturbation.',
  'reactivation': 'ASR before and after the defense and after re-activation, '
  'beside the backdoor existence coefficient.',
  'paths': 'Along the straight path from the backdoored to the defended model.',
  'scatter': 'What is left of the backdoor against what its trigger achieves: '
  'BEC, and on the right the published scale, relative to each row.',
  'queries': "Success on the attacker's own pool as queries go on; median and "
  'quartiles over defended models.',
  'retuning': 'ASR after the defense (O-ASR) and after retuning (P-ASR).',
  'rho': 'PAM: backdoor error along the path, by ρ.',
  'comparison': 'The original attack (OBA), the re-activated one (RBA) and an '
  'adversarial perturbation without the trigger (gUAA).',
  'gallery': 'All triggers: PSNR and SSIM are means over test images; the '
  'difference is enlarged around gray, its spectrum has frequency 0 in the '
  'middle.',
  'ablations': 'One hyper-parameter varied; median and quartiles over models.',
}
ONLY = flags.DEFINE_string(
  'only', None, 'Only records of this data set; default: all.'
)
GALLERY = flags.DEFINE_bool(
  'gallery', False, 'Also draw the triggers of all attacked models.'
)


def main(config, context: cli.Context) -> list[dict]:
  """Prints the table and writes report.md, table.csv and figures.

  Args:
    config: not used.
    context: where the records are.

  Returns:
    The rows.
  """
  del config
  records = zoo.records.read(context.records)
  if ONLY.value:
    records = [r for r in records if r['dataset'] == ONLY.value]
    if not records:
      raise ValueError(
        f'{context.records} has no record of dataset {ONLY.value}.'
      )
  triggers = gallery.draw(context, ONLY.value) if GALLERY.value else None
  return write(context.workdir, records, pictures=filter(None, [triggers]))


def write(
  root: pathlib.Path,
  records: list[dict],
  summarize: Callable[[list[dict]], str] | None = None,
  pictures: Iterable[str] = (),
) -> list[dict]:
  """Makes the report of some records; see `main`.

  Args:
    root: the store; report, table and figures go there.
    records: what to report.
    summarize: rows -> Markdown that follows the table.
    pictures: figures drawn before, relative to the root.

  Returns:
    The rows.
  """
  rows = zoo.tables.rows(records)
  drawn = [*pictures, *figures.draw(root, rows, records)]
  print_table(rows)
  missing = _missing(records)
  for line in missing:
    show.CONSOLE.print(f'not defended: {markup.escape(line)}', highlight=False)
  text = _markdown(rows, drawn, missing, summarize)
  (root / 'report.md').write_text(text, encoding='utf-8')
  (root / 'table.csv').write_text(zoo.tables.to_csv(rows), encoding='utf-8')
  show.done(f'\nreport: {root / "report.md"}, table.csv, {", ".join(drawn)}')
  return rows


# What a narrow screen can do without, that first.
_LEAST = (
  'control_clean_model_asr',
  'control_clean_input_asr',
  'retuned_clean_asr',
  'cross_asr',
  'cross_acc',
  'seconds',
  'backdoor_error_auc',
  'der',
  'r_acc',
  'qra_asr',
  'transfer_asr',
  'black_box_asr',
)


def print_table(rows: list[dict]) -> None:
  """Prints the table and the verdicts."""
  table = rich.table.Table(
    title='Is the backdoor gone?  (rates in %)', box=rich.box.SIMPLE_HEAD
  )
  cells = {
    (name, head): [zoo.tables.shown(row, name, rate) for row in rows]
    for name, head, rate in zoo.tables.columns(rows)
  }
  left_out = _too_wide(cells, show.CONSOLE.width)
  for column in left_out:
    del cells[column]
  for name, head in cells:
    first = name == 'model'
    table.add_column(head, justify='left' if first else 'right', no_wrap=first)
  for row in zip(*cells.values(), strict=True):
    table.add_row(*map(markup.escape, row))
  show.CONSOLE.print(table)
  if left_out:
    heads = ', '.join(head for _, head in left_out)
    show.CONSOLE.print(f'too wide for here, but in report.md: {heads}')
  for name, sentence in _verdicts(rows):
    text = f'[bold]{markup.escape(name)}[/bold]: {markup.escape(sentence)}'
    show.CONSOLE.print(text, highlight=False)


def _too_wide(cells: dict[tuple[str, str], list[str]], width: int) -> list:
  """Keys of the columns that must go for the others to fit, the last first."""
  widths = {
    column: 3 + max(map(len, [*column[1].split(), *texts]))  # and the gap
    for column, texts in cells.items()
  }
  going = [c for name in _LEAST for c in cells if c[0] == name]
  left_out = []
  while going and sum(widths.values()) + 2 > width:
    left_out.append(going.pop(0))
    del widths[left_out[-1]]
  return left_out


def _verdicts(rows) -> list[tuple[str, str]]:
  found = [(row['model'], zoo.tables.verdict(row)) for row in rows]
  return [(name, sentence) for name, sentence in found if sentence]


def _missing(records) -> list[str]:
  """Defenses that could not be made, each once, with the reason."""
  done = {r['run_id'] for r in records if r['status'] in (None, 'done')}
  lines = [
    f'{r["attack"]} + {r["defense"]} ({r["status"]}): {r["reason_text"]}'
    for r in records
    if r['status'] not in (None, 'done') and r['run_id'] not in done
  ]
  return list(dict.fromkeys(lines))


def _markdown(rows, drawn, missing, summarize) -> str:
  first = rows[0] if rows else {}
  parts = [
    '# Is the backdoor gone?\n',
    f'{first.get("dataset")}, {first.get("arch")}, device '
    f'{first.get("device_kind")}, jax {first.get("jax_version")}, code '
    f'{first.get("code_version")}.\n',
    zoo.tables.to_markdown(rows),
    '\n'.join(f'- **{n}**: {s}' for n, s in _verdicts(rows)) + '\n',
    ''.join(f'- not defended: {line}\n' for line in missing),
    _EXPLAINED,
    summarize(rows) if summarize else '',
  ]
  for path in drawn:
    name = pathlib.Path(path).stem
    parts.append(f'![{STAGE_OF_FIGURE[name]}]({path})\n')
  return '\n'.join(filter(None, parts))


_EXPLAINED = """\
C-Acc: clean accuracy. ASR: triggered images sent to the attacker's class.
R-Acc: triggered images still given their true class. DER: 1 is a perfect
defense, 0.5 no effect. BEC: 1 = the backdoor's representation is that of the
backdoored model, 0 = that of a clean one; compare it only among rows of one
table. Controls: the same attack where no backdoor can help; a re-activated
ASR means something as far as it exceeds them. Seconds: the model's own stage,
compilation included, divided among models that ran as one stack.
"""


if __name__ == '__main__':
  cli.run(main)
