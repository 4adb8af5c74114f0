"""From records to the table people read: one row per model, and a verdict.

A row joins what was measured on a model in all stages. Rates stay fractions;
only `to_markdown` and whoever prints them writes percent.
"""

import collections
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Field of a row, heading, and whether it is a rate shown in percent.
COLUMNS = (
  ('model', 'model', False),
  ('c_acc', 'C-Acc', True),
  ('asr', 'ASR', True),
  ('r_acc', 'R-Acc', True),
  ('der', 'DER', False),
  ('bec', 'BEC', False),
  ('reactivated_asr', 're-activated ASR', True),
  ('control_clean_input_asr', 'control: clean input', True),
  ('control_clean_model_asr', 'control: clean model', True),
  ('seconds', 'seconds', False),
)

_MODEL_STAGES = ('clean', 'attack', 'defend')
_MEASURED = {
  'existence': ('bec', 'bec_raw', 'bec_per_layer'),
  'reactivate': (
    'reactivated_asr',
    'control_clean_input_asr',
    'control_clean_model_asr',
    'eps',
    'norm',
  ),
  'connect': ('barrier_clean', 'tau_star'),
}
ALIVE = 0.5  # attack success rate from which a backdoor counts as working
_GAP = 0.25  # lead over the controls from which it is the backdoor that works
_COST = 0.1  # loss of clean accuracy from which a verdict speaks of it


def rows(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One row per model.

  Args:
    records: from `records.read`.

  Returns:
    Rows by data set and architecture, therein clean models, then each attack
    followed by its defenses; each holds the model's own record, the fields of
    the latest measurement of each kind whose first parent it is, `model` (a
    name) and `seconds` (of its own stage). Several seeds stay several rows.
    Names tell them apart, and data sets or architectures where there are
    several. A defense in several settings gets the beginning of its
    config_digest, the same on all models; what is still alike that of its
    run_id.
  """
  records = [r for r in records if r.get('status') in (None, 'done')]
  models = {
    r['run_id']: dict(r) for r in records if r['stage'] in _MODEL_STAGES
  }
  for record in records:
    parent = (record.get('parents') or [None])[0]
    if record['stage'] in _MEASURED and parent in models:
      fields = _MEASURED[record['stage']]
      models[parent] |= {name: record.get(name) for name in fields}
      models[parent][f'{record["stage"]}_run'] = record['run_id']
  for row in models.values():
    row['seconds'] = _seconds(row)
  _name_all(models)
  return sorted(models.values(), key=lambda row: _order(row, models))


def _name_all(models) -> None:
  """Puts `model` into every row, no two alike."""
  several = len({row['seed'] for row in models.values()}) > 1
  worlds = [
    field
    for field in ('dataset', 'arch')
    if len({row[field] for row in models.values()}) > 1
  ]
  settings = collections.defaultdict(set)
  for row in models.values():
    settings[_method(row)].add(row.get('config_digest'))
  for row in models.values():
    row['model'] = _name(row, models, several)
    if row['stage'] == 'defend' and len(settings[_method(row)]) > 1:
      row['model'] += f' [{str(row["config_digest"])[:4]}]'
    if worlds:
      row['model'] += f' ({", ".join(str(row[field]) for field in worlds)})'
  times = collections.Counter(row['model'] for row in models.values())
  for row in models.values():
    if times[row['model']] > 1:
      row['model'] += f' [{row["run_id"][:8]}]'


def _method(row) -> tuple:
  """What may come in several settings, alike for all that it is tried on."""
  name = row.get('defense') or row['method']
  return row['stage'], name, row['dataset'], row['arch'], row['seed']


def _parent(row, models):
  """The row of the model a defense started from, None where there is none."""
  if row['stage'] != 'defend':
    return None
  return models.get((row.get('parents') or [None])[0])


def _name(row, models, several: bool) -> str:
  """'badnets + ft_sam', with its seeds where there are several."""
  name = 'clean'
  if row['stage'] != 'clean':
    name = row['attack'] or row['method'] or '?'
    if row['label_mode'] not in (None, 'all2one'):
      name += f' ({row["label_mode"]})'
  if row['stage'] == 'defend':
    name += f' + {row["defense"] or row["method"]}'
  if several:
    parent = _parent(row, models)
    seeds = [parent['seed'], row['seed']] if parent else [row['seed']]
    name += f' #{"/".join(map(str, dict.fromkeys(seeds)))}'
  return name


def _seconds(row) -> float | None:
  spent = [row.get('compile_s'), row.get('run_s')]
  known = [s for s in spent if s is not None]
  return sum(known) if known else None


def _order(row, models):
  """Clean models first, then each attack followed by its defenses."""
  victim = row
  while (parent := _parent(victim, models)) is not None:
    victim = parent
  world = (row['dataset'] or '', row['arch'] or '')
  seed = -1 if victim['seed'] is None else victim['seed']
  family = (victim['attack'] or '', seed, victim['run_id'])
  stage = _MODEL_STAGES.index(row['stage'])
  return (*world, stage > 0, *family, stage, row['model'])


def verdict(row: Mapping[str, Any]) -> str | None:
  """What the numbers of a defended model mean, in a sentence or two.

  Args:
    row: from `rows`.

  Returns:
    Text; None for models that are not defended, or without a rate.

  The thresholds: ASR from 50 % counts as working, and re-activation as the
  backdoor's own work where it leads both controls by 25 points, however far it
  gets. Without both controls nothing is said of whose work it is. Clean
  accuracy is spoken of where it fell by 10 points.
  """
  if row['stage'] != 'defend' or row['asr'] is None:
    return None
  if row.get('finite') is False:
    return 'broken: some numbers of the run are not finite.'
  base, asr = row.get('base_asr'), row['asr']
  if base is not None and base < ALIVE:
    return f'nothing to remove: the attack itself succeeds on {base:.0%} only.'
  if asr >= ALIVE:
    text = f'not removed: the plain trigger still succeeds on {asr:.0%}.'
    return text + _paid(row)
  bec = row.get('bec')
  rest = '' if bec is None else f' BEC {bec:.2f} of the backdoored model.'
  return _of_removed(row) + rest + _paid(row)


def _of_removed(row) -> str:
  """The verdict where the plain trigger has stopped working."""
  again = row.get('reactivated_asr')
  start = f'ASR fell to {row["asr"]:.0%}'
  if again is None:
    return f'{start}; whether the backdoor is gone has not been tested.'
  found = f'a perturbation on top of the trigger brings it to {again:.0%}'
  controls = [
    row.get('control_clean_input_asr'),
    row.get('control_clean_model_asr'),
  ]
  is_compared = None not in controls
  rival = max(controls) if is_compared else 0.0
  if is_compared and again - rival >= _GAP:
    return (
      f'dormant, not gone: {start}, but {found}, against {rival:.0%} where no '
      'backdoor can help.'
    )
  if again < ALIVE:
    return f'no living backdoor found: {start}, and {found} at most.'
  if is_compared:
    return (
      f'undecided: {start} and {found}, but the same attack reaches '
      f'{rival:.0%} where no backdoor can help.'
    )
  return (
    f'undecided: {start} and {found}, but without both controls that may be '
    'any adversarial perturbation.'
  )


def _paid(row) -> str:
  """A sentence on the loss of clean accuracy, '' where it is small."""
  before, after = row.get('base_c_acc'), row.get('c_acc')
  if before is None or after is None or before - after < _COST:
    return ''
  return f' C-Acc fell from {before:.0%} to {after:.0%}.'


def shown(row: Mapping[str, Any], name: str, is_rate: bool) -> str:
  """One cell as text: percent with one decimal, a dash where there is none."""
  value = row.get(name)
  if value is None:
    return '–'
  if isinstance(value, str):
    return value
  if is_rate:
    return f'{100 * value:.1f}'
  return f'{value:.1f}' if name == 'seconds' else f'{value:.2f}'


def to_markdown(table: Sequence[Mapping[str, Any]]) -> str:
  """The table as Markdown, rates in percent."""
  heads = [f'{head} [%]' if rate else head for _, head, rate in COLUMNS]
  lines = [
    '| ' + ' | '.join(heads) + ' |',
    '|---|' + '---:|' * (len(COLUMNS) - 1),
  ]
  for row in table:
    cells = [shown(row, name, rate) for name, _, rate in COLUMNS]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
  """The table as CSV with field names, rates as fractions, unrounded."""
  buffer = io.StringIO()
  names = [name for name, _, _ in COLUMNS] + ['seed', 'run_id']
  writer = csv.DictWriter(buffer, names, extrasaction='ignore')
  writer.writeheader()
  writer.writerows(table)
  return buffer.getvalue()
