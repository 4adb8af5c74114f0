"""Figures of a report, from records and the arrays beside them."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import figure

from bdjax import zoo
from bdjax.analysis import ink, plots
from launch import study_figures


def draw(
  root: pathlib.Path,
  rows: Sequence[dict[str, Any]],
  records: Sequence[dict[str, Any]] = (),
) -> list[str]:
  """Draws whatever the rows and records have numbers for.

  Args:
    root: the store; figures go to its folder 'figures'.
    rows: from `zoo.tables.rows`.
    records: all records, for the variants that rows leave out.

  Returns:
    Paths of the PNGs relative to the root.
  """
  folder = root / 'figures'
  folder.mkdir(parents=True, exist_ok=True)
  defended = [row for row in rows if row['stage'] == 'defend']
  made = []
  plots_of = {name: (plot, defended) for name, plot in _FIGURES.items()}
  plots_of |= {n: (plot, rows) for n, plot in study_figures.OF_ROWS.items()}
  plots_of |= {
    n: (plot, records) for n, plot in study_figures.OF_RECORDS.items()
  }
  for name, (plot, entries) in plots_of.items():
    fig = plot(root, entries)
    if fig is not None:
      fig.savefig(folder / f'{name}.png', dpi=150, facecolor='white')
      made.append(f'figures/{name}.png')
  return made


def _bars(root, rows):
  """ASR before, after, re-activated, beside BEC: panels of one attack each."""
  del root
  rows = [row for row in rows if row.get('reactivated_asr') is not None]
  if not rows:
    return None
  groups: dict[str, list] = {}
  for row in rows:
    groups.setdefault(row['parents'][0], []).append(row)
  panels = [part for group in groups.values() for part in _parts(group)]
  widest = max(len(group) for group in panels)
  fig = figure.Figure(
    figsize=(max(6.0, 2.2 * widest + 1.5), 4.4 * len(panels)),
    layout='constrained',
  )
  axes = fig.subplots(len(panels), squeeze=False)[:, 0]
  for ax, group in zip(axes, panels, strict=True):
    plots.plot_bars(
      ax,
      [row['model'].split(' + ', 1)[1] for row in group],
      [row['base_asr'] for row in group],
      [row['asr'] for row in group],
      [row['reactivated_asr'] for row in group],
      [row.get('bec') for row in group],
      control=[row['control_clean_input_asr'] for row in group],
      title=f'{group[0]["attack"]} on {group[0]["dataset"]}',
    )
    ax.set_xlim(-0.6, widest - 0.4)
  return fig


def _parts(group: Sequence) -> list[Sequence]:
  """Even parts, none of them longer than a panel can hold."""
  num = -(-len(group) // _ABREAST)
  size = -(-len(group) // num)
  return [group[i : i + size] for i in range(0, len(group), size)]


def _paths(root, rows):
  """C-Acc and ASR along the path of each defended model."""
  rows = [row for row in rows if 'connect_run' in row]
  if not rows:
    return None
  columns = min(len(rows), 3)
  lines = -(-len(rows) // columns)
  fig = figure.Figure(
    figsize=(5.2 * columns, 4.2 * lines), layout='constrained'
  )
  axes = fig.subplots(lines, columns, squeeze=False).ravel()
  for ax in axes[len(rows) :]:
    ax.set_axis_off()
  for ax, row in zip(axes, rows, strict=False):
    arrays = zoo.load_arrays(zoo.open(root, row['connect_run']))
    curves = {
      treatment: {
        name: arrays[f'{treatment}/{name}'] for name in ('c_acc', 'asr')
      }
      for treatment in ('recalibrated', 'naive')
    }
    plots.plot_paths(
      ax,
      arrays['t'],
      curves,
      tau_star=row.get('tau_star'),
      title=row['model'],
    )
  return fig


def _images(root, rows):
  """One test image of each re-activated model, and its perturbation."""
  rows = [row for row in rows if 'reactivate_run' in row]
  if not rows:
    return None
  blocks = _parts(rows)
  fig = figure.Figure(
    figsize=(7.2 * len(blocks), 1.9 * len(blocks[0]) + 0.5),
    layout='constrained',
  )
  parts = fig.subfigures(1, len(blocks), squeeze=False)[0]
  for part, block in zip(parts, blocks, strict=True):
    found = [
      zoo.load_arrays(zoo.open(root, r['reactivate_run'])) for r in block
    ]
    pick = lambda name, found=found: np.stack(
      [np.asarray(ink.unit(a[f'examples/{name}'][0])) for a in found]
    )
    plots.plot_images(
      part,
      pick('clean'),
      pick('triggered'),
      pick('perturbed'),
      row_labels=[row['model'] for row in block],
    )
  return fig


def _heat(root, rows):
  """Defenses against attacks: what is left, what it costs."""
  del root
  attacks = list(dict.fromkeys(row['attack'] for row in rows))
  defenses = list(dict.fromkeys(_defense(row) for row in rows))
  if len(attacks) * len(defenses) < 3:
    return None
  table = lambda field: _pivot(rows, attacks, defenses, field)
  before, widths = table('base_asr'), [len(attacks)] * 3 + [3]
  fig = figure.Figure(
    figsize=(4.0 + 0.75 * sum(widths), 1.7 + 0.32 * (len(defenses) + 1)),
    layout='constrained',
  )
  axes = fig.subplots(1, 4, gridspec_kw={'width_ratios': widths})
  with_none = lambda first, values: np.vstack([first[None], values])
  none = np.zeros(len(attacks))
  panels = (
    ('ASR [%]', with_none(_first_known(before), table('asr')), (0, 1), 'high'),
    (
      'C-Acc lost [points]',
      with_none(none, table('base_c_acc') - table('c_acc')),
      (0, 0.2),
      'high',
    ),
    ('DER [%]', with_none(none + 0.5, table('der')), (0.5, 1), 'low'),
  )
  names = ['no defense', *defenses]
  for ax, (title, values, span, bad) in zip(axes, panels, strict=False):
    plots.plot_heat(ax, names, attacks, values, span=span, bad=bad, title=title)
  _costs(axes[3], names, rows, defenses)
  for ax in axes[1:]:
    ax.set_yticks([])
  return fig


def _defense(row) -> str:
  """The model's name without its attack's: tells settings and seeds apart."""
  return row['model'].split(' + ', 1)[1]


def _pivot(rows, attacks, defenses, field) -> np.ndarray:
  """Mean of a field over the rows of each cell, NaN where there is none."""
  cells = np.full((len(defenses), len(attacks)), np.nan)
  for i, defense in enumerate(defenses):
    for j, attack in enumerate(attacks):
      found = [
        row[field]
        for row in rows
        if (_defense(row), row['attack']) == (defense, attack)
        and row.get(field) is not None
      ]
      if found:
        cells[i, j] = np.mean(found)
  return cells


def _first_known(cells: np.ndarray) -> np.ndarray:
  """Of each column the first number that is one."""
  known = [column[~np.isnan(column)] for column in cells.T]
  return np.array([column[0] if len(column) else np.nan for column in known])


def _costs(ax, names, rows, defenses) -> None:
  """Mean seconds, peak memory and gradients of each defense."""
  columns = {
    name: (field, unit)
    for name, field, unit in _COSTS
    if any(row.get(field) is not None for row in rows)
  }
  values = np.full((len(defenses), len(columns)), np.nan)
  for j, (field, unit) in enumerate(columns.values()):
    for i, defense in enumerate(defenses):
      found = [
        row[field] / unit
        for row in rows
        if _defense(row) == defense and row.get(field) is not None
      ]
      values[i, j] = np.mean(found) if found else np.nan
  largest = np.nanmax(np.nan_to_num(values), axis=0)
  shade = values / np.where(largest > 0, largest, 1)[None]
  whole = lambda v: v >= 100 or v == round(v)
  texts = [
    [f'{v:.{0 if whole(v) else 1}f}' for v in row]
    for row in np.nan_to_num(values)
  ]
  blank = np.full((1, len(columns)), np.nan)
  plots.plot_heat(
    ax,
    names,
    list(columns),
    np.vstack([blank, shade]),
    texts=[[''] * len(columns), *texts],
    span=(0, 2),
    title='cost per model',
  )


_ABREAST = 8  # models in one panel
_COSTS = (  # heading, field, its unit
  ('s', 'seconds', 1),
  ('MiB', 'peak_bytes', 2**20),
  ('gradients', 'grad_passes', 1),
)

_FIGURES: dict[str, Callable] = {
  'heat': _heat,
  'images': _images,
  'reactivation': _bars,
  'paths': _paths,
}
