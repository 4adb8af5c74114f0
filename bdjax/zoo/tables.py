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

# The same of what only some studies measure; shown where there is anything.
MORE_COLUMNS = (
  ('cross_acc', 'cross accuracy', True),
  ('cross_asr', 'cross ASR', True),
  ('black_box_asr', 'black-box', True),
  ('transfer_asr', 'transfer', True),
  ('qra_asr', 'QRA', True),
  ('p_asr', 'P-ASR', True),
  ('retuned_clean_asr', 'control: retuned clean model', True),
  ('tau_star', 'τ*', False),
  ('backdoor_error_auc', 'error AUC', False),
)

_MODEL_STAGES = ('clean', 'attack', 'defend')
_MEASURED = {
  'existence': ('bec', 'bec_raw', 'bec_per_layer', 's_clean', 's_defended'),
  'connect': ('barrier_clean', 'tau_star', 'backdoor_error_auc'),
}
# Methods whose rate may stand for re-activation as such, the best known first.
PERTURBING = ('white_box', 'black_box', 'transfer', 'qra')
_RETUNING = 'retuning_attack'
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
    Re-activations are '<method>_asr', with '<method>_run' and its controls
    under '<method>_clean_input' and '<method>_clean_model'; the first of
    `PERTURBING` that there is also stands under the names of its record.
    Variants of a measurement are left out.
    Names tell them apart, and data sets or architectures where there are
    several. A variant of a defense carries its name; one in several settings
    without names the beginning of its config_digest, the same on all models;
    what is still alike that of its run_id.
  """
  records = [r for r in records if r.get('status') in (None, 'done')]
  models = {
    r['run_id']: dict(r) for r in records if r['stage'] in _MODEL_STAGES
  }
  for record in records:
    parent = (record.get('parents') or [None])[0]
    if parent in models and not record.get('variant'):
      models[parent] |= _measurement(record)
  for row in models.values():
    row['seconds'] = _seconds(row)
    row |= _headline(row)
  _name_all(models)
  return sorted(models.values(), key=lambda row: _order(row, models))


def _measurement(record) -> dict[str, Any]:
  """What a measurement adds to the row of the model it was made on."""
  stage, run = record['stage'], record['run_id']
  if stage in _MEASURED:
    fields = {name: record.get(name) for name in _MEASURED[stage]}
    return fields | {f'{stage}_run': run}
  if stage != 'reactivate':
    return {}
  control = record.get('control_clean_model_asr')
  if record['method'] == _RETUNING:
    return {
      'p_asr': record.get('p_asr'),
      'retuned_clean_asr': control,
    }
  name = record['method']
  return {
    f'{name}_asr': record.get('reactivated_asr'),
    f'{name}_clean_input': record.get('control_clean_input_asr'),
    f'{name}_clean_model': control,
    f'{name}_run': run,
  }


def _headline(row) -> dict[str, Any]:
  """The re-activation that stands for all of them."""
  for name in PERTURBING:
    if f'{name}_run' in row:
      return {
        'reactivated_by': name,
        'reactivate_run': row[f'{name}_run'],
        'reactivated_asr': row[f'{name}_asr'],
        'control_clean_input_asr': row[f'{name}_clean_input'],
        'control_clean_model_asr': row[f'{name}_clean_model'],
      }
  return {}


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
    if not row.get('variant'):
      settings[_method(row)].add(row.get('config_digest'))
  for row in models.values():
    row['model'] = _name(row, models, several)
    if row.get('variant'):
      row['model'] += f' ({row["variant"]})'
    elif row['stage'] == 'defend' and len(settings[_method(row)]) > 1:
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
  return _of_removed(row) + _of_retuned(row) + rest + _paid(row)


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


def _of_retuned(row) -> str:
  """A sentence on the retuning attack, '' where it was not run."""
  after, control = row.get('p_asr'), row.get('retuned_clean_asr')
  if after is None or control is None:
    return ''
  if after - max(control, row['asr']) >= _GAP:
    return (
      f' Superficial: retuning on a few poisoned images brings the ASR to '
      f'{after:.0%}, and that of a clean model to {control:.0%}.'
    )
  return f' Retuning on a few poisoned images brings the ASR to {after:.0%}.'


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


def columns(table: Sequence[Mapping[str, Any]]) -> tuple:
  """`COLUMNS`, and those of `MORE_COLUMNS` in which a row has something.

  Seconds stay last.
  """
  more = tuple(
    column
    for column in MORE_COLUMNS
    if any(row.get(column[0]) is not None for row in table)
  )
  return COLUMNS[:-1] + more + COLUMNS[-1:]


def to_markdown(table: Sequence[Mapping[str, Any]]) -> str:
  """The table as Markdown, rates in percent."""
  known = columns(table)
  heads = [f'{head} [%]' if rate else head for _, head, rate in known]
  lines = [
    '| ' + ' | '.join(heads) + ' |',
    '|---|' + '---:|' * (len(known) - 1),
  ]
  for row in table:
    cells = [shown(row, name, rate) for name, _, rate in known]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
  """The table as CSV with field names, rates as fractions, unrounded."""
  buffer = io.StringIO()
  names = [name for name, _, _ in columns(table)] + ['seed', 'run_id']
  writer = csv.DictWriter(buffer, names, extrasaction='ignore')
  writer.writeheader()
  writer.writerows(table)
  return buffer.getvalue()
