"""Figures of studies: existence, queries, retuning, PAM's ρ, controls."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import figure

from bdjax import existence, zoo
from bdjax.analysis import charts
from launch import findings

_SHOWN = 8  # models in the comparison of controls
_RBA, _GUAA = 'with the trigger (RBA)', 'clean inputs (gUAA)'


def _panels(count: int, *, width: float = 5.2, height: float = 4.2, columns=3):
  """A figure of that many panels, and their axes."""
  columns = min(count, columns)
  lines = -(-count // columns)
  fig = figure.Figure(
    figsize=(width * columns, height * lines), layout='constrained'
  )
  axes = fig.subplots(lines, columns, squeeze=False).ravel()
  for ax in axes[count:]:
    ax.set_axis_off()
  return fig, axes[:count]


def _by_attack(rows) -> dict[str, list]:
  """Defended models of each attacked one, by a name for it."""
  groups: dict[str, list] = {}
  for row in rows:
    if row['stage'] == 'defend':
      groups.setdefault(row['model'].split(' + ', 1)[0], []).append(row)
  return groups


def _scatter(root, rows):
  """ASR after the defense against BEC, on both scales."""
  del root
  known = [row for row in rows if row.get('bec_raw') is not None]
  groups = _by_attack(known)
  if len(known) < 3:
    return None
  fig, (ours, published) = _panels(2, width=5.6, height=4.8)
  defense = lambda row: row['model'].split(' + ', 1)[1]
  few = len(known) <= 12
  labels = {name: [defense(r) for r in g] for name, g in groups.items()}
  charts.plot_scatter(
    ours,
    {
      n: ([r['asr'] for r in g], [r['bec'] for r in g])
      for n, g in groups.items()
    },
    labels=labels if few else None,
    xlabel='ASR after the defense',
    ylabel='BEC  (0 = clean model, 1 = backdoored)',
    title='existence coefficient',
  )
  scaled = {}
  for name, group in groups.items():
    with_both = [r for r in group if r.get('s_defended') is not None]
    if with_both:
      row = existence.legacy_minmax(
        with_both[0]['s_clean'], [r['s_defended'] for r in with_both]
      )
      scaled[name] = ([r['asr'] for r in with_both], row[1:])
  charts.plot_scatter(
    published,
    scaled,
    xlabel='ASR after the defense',
    ylabel='similarity, scaled to the row’s minimum and maximum',
    title='published scale: compare within one attack only',
  )
  return fig


def _queries(root, rows):
  """Pool ASR against queries, with and without the trigger."""
  groups = _by_attack(
    [r for r in findings.removed(rows) if 'black_box_run' in r]
  )
  if not groups:
    return None
  fig, axes = _panels(len(groups))
  for ax, (name, group) in zip(axes, groups.items(), strict=True):
    found = [zoo.load_arrays(zoo.open(root, r['black_box_run'])) for r in group]
    paths = {
      _RBA: 'curves/search/asr',
      _GUAA: 'curves_of/control_clean_input_asr/search/asr',
    }
    series = {
      label: np.stack([arrays[path] for arrays in found])
      for label, path in paths.items()
    }
    steps = 1 + np.arange(next(iter(series.values())).shape[-1])
    charts.plot_rates(
      ax,
      steps,
      series,
      xlabel='queries',
      ylabel='ASR on the attacker’s pool',
      with_markers=False,
      title=f'{name}: {len(group)} defended models',
    )
  return fig


def _retuning(root, rows):
  """O-ASR and P-ASR of what looks safe, beside the clean model's P-ASR."""
  del root
  groups = _by_attack(
    [r for r in findings.removed(rows) if r.get('p_asr') is not None]
  )
  if not groups:
    return None
  widest = max(len(group) for group in groups.values())
  fig, axes = _panels(
    len(groups), width=max(6.0, 0.8 * widest), height=3.6, columns=1
  )
  for ax, (name, group) in zip(axes, groups.items(), strict=True):
    group = sorted(group, key=lambda row: -row['p_asr'])
    charts.plot_grouped_bars(
      ax,
      [row['model'].split(' + ', 1)[1] for row in group],
      {
        'P-ASR, retuned': [row['p_asr'] for row in group],
        'O-ASR, defended': [row['asr'] for row in group],
      },
      title=f'{name}: the retuned clean model reaches '
      f'{group[0]["retuned_clean_asr"]:.0%}',
    )
    ax.axhline(
      group[0]['retuned_clean_asr'], color='#222222', linewidth=1, linestyle=':'
    )
  return fig


def _rho(root, rows):
  """Backdoor error along the path for each ρ of PAM."""
  groups = _by_attack(
    [r for r in rows if r.get('defense') == 'pam' and 'connect_run' in r]
  )
  groups = {name: g for name, g in groups.items() if len(g) > 1}
  if not groups:
    return None
  fig, axes = _panels(len(groups))
  for ax, (name, group) in zip(axes, groups.items(), strict=True):
    series, t = {}, None
    for row in sorted(group, key=findings.rho_of):
      arrays = zoo.load_arrays(zoo.open(root, row['connect_run']))
      t = arrays['t']
      label = f'ρ {findings.rho_of(row):g} (C-Acc {row["c_acc"]:.1%})'
      series[label] = 1 - np.asarray(arrays['recalibrated/asr'])
    charts.plot_rates(
      ax,
      t,
      series,
      xlabel='t  (0 = backdoored, 1 = defended)',
      ylabel='backdoor error, 1 − ASR',
      title=name,
    )
  return fig


def _comparison(root, rows):
  """OBA, RBA and gUAA: neurons they act by, noise they survive."""
  found = []
  for row in findings.removed(rows):
    for method in zoo.tables.PERTURBING:
      if f'{method}_run' in row and len(found) < _SHOWN:
        artefact = zoo.open(root, row[f'{method}_run'])
        metrics = zoo.load_metrics(artefact)
        if 'mechanism' in metrics:
          found.append((row, metrics, zoo.load_arrays(artefact)))
  if not found:
    return None
  fig, axes = _panels(len(found) + 1)
  charts.plot_grouped_bars(
    axes[0],
    [row['model'].replace(' + ', '\n') for row, _, _ in found],
    {
      'RBA': [m['mechanism']['rba'] for _, m, _ in found],
      'gUAA': [m['mechanism']['guaa'] for _, m, _ in found],
    },
    ylabel='CKA with OBA at the backdoor neurons',
    is_rate=False,
    title='mechanism',
  )
  for ax, (row, _, arrays) in zip(axes[1:], found, strict=True):
    charts.plot_rates(
      ax,
      arrays['noise/amplitude'],
      {n.upper(): arrays[f'noise/{n}'] for n in ('oba', 'rba')}
      | {'gUAA': arrays['noise/guaa']},
      xlabel='amplitude of added noise',
      title=row['model'],
    )
  return fig


def _ablations(root, records):
  """What is measured against one varied setting, the usual value among them."""
  groups: dict[tuple, dict[Any, list]] = {}
  usual: dict[tuple, list] = {}
  for record in records:
    if record['stage'] not in _VARIED or record.get('status') != 'done':
      continue
    kind = record['stage'], record['method']
    if not record.get('variant'):
      usual.setdefault(kind, []).append(record)
      continue
    field, _, value = record['variant'].partition('=')
    cells = groups.setdefault((*kind, field), {})
    cells.setdefault(value, []).append(record)
  if not groups:
    return None
  fig, axes = _panels(len(groups))
  for ax, (key, cells) in zip(axes, groups.items(), strict=True):
    known = usual.get(key[:2], [])
    _ablation(ax, key, _with_usual(root, key[2], cells, known))
  return fig


def _with_usual(root, field, cells, usual):
  """Adds the records of unvaried runs on the same models, all else equal.

  A variant with the usual value is the usual run, which carries no name.
  """

  def settings(record):
    found = zoo.open(root, record['run_id']).card.hparams
    flat = {k: v for k, v in found.items() if k != 'method'}
    return flat | found.get('method', {})

  one = next(iter(cells.values()))[0]
  rest = {k: v for k, v in settings(one).items() if k != field}
  models = {record['parents'][0] for record in next(iter(cells.values()))}
  for record in usual:
    mine = settings(record)
    value = str(mine.pop(field))
    if mine == rest and record['parents'][0] in models:
      cells.setdefault(value, []).append(record)
  return cells


def _ablation(ax, key, cells) -> None:
  """One panel; names in place of numbers become positions."""
  stage, method, field = key
  fewest = min(len(found) for found in cells.values())
  series = {
    label: np.array(
      [[r[name] for r in found[:fewest]] for found in cells.values()], float
    ).T
    for name, label in _VARIED[stage].items()
  }
  try:
    x = [float(value) for value in cells]
  except ValueError:
    x = list(range(len(cells)))
    ax.set_xticks(x, list(cells))
  order = np.argsort(x)
  charts.plot_rates(
    ax,
    np.asarray(x)[order],
    {label: values[:, order] for label, values in series.items()},
    xlabel=field,
    ylabel='BEC' if stage == 'existence' else 'ASR',
    title=f'{method}: {fewest} defended models',
  )


_VARIED = {  # what is drawn of the variants of each stage
  'reactivate': {
    'reactivated_asr': 'trigger, defended',
    'control_clean_input_asr': 'clean inputs, defended',
    'control_clean_model_asr': 'trigger, clean model',
  },
  'existence': {'bec': 'BEC'},
}
OF_ROWS: dict[str, Callable] = {
  'scatter': _scatter,
  'queries': _queries,
  'retuning': _retuning,
  'rho': _rho,
  'comparison': _comparison,
}
OF_RECORDS: dict[str, Callable] = {'ablations': _ablations}
