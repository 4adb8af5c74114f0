"""Figures of a report, from records and the arrays beside them."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import figure

from bdjax import zoo
from bdjax.analysis import plots


def draw(root: pathlib.Path, rows: Sequence[dict[str, Any]]) -> list[str]:
  """Draws whatever the rows have numbers for.

  Args:
    root: the store; figures go to its folder 'figures'.
    rows: from `zoo.tables.rows`.

  Returns:
    Paths of the PNGs relative to the root.
  """
  folder = root / 'figures'
  folder.mkdir(parents=True, exist_ok=True)
  defended = [row for row in rows if row['stage'] == 'defend']
  made = []
  for name, plot in _FIGURES.items():
    fig = plot(root, defended)
    if fig is not None:
      fig.savefig(folder / f'{name}.png', dpi=150, facecolor='white')
      made.append(f'figures/{name}.png')
  return made


def _bars(root, rows):
  """ASR before, after, re-activated, beside BEC: one panel per attack."""
  del root
  rows = [row for row in rows if row.get('reactivated_asr') is not None]
  if not rows:
    return None
  groups: dict[str, list] = {}
  for row in rows:
    groups.setdefault(row['parents'][0], []).append(row)
  widest = max(len(group) for group in groups.values())
  fig = figure.Figure(
    figsize=(max(6.0, 2.2 * widest + 1.5), 4.4 * len(groups)),
    layout='constrained',
  )
  axes = fig.subplots(len(groups), squeeze=False)[:, 0]
  for ax, group in zip(axes, groups.values(), strict=True):
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
  return fig


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
  found = [zoo.load_arrays(zoo.open(root, r['reactivate_run'])) for r in rows]
  pick = lambda name: np.stack(
    [np.asarray(_unit(a[f'examples/{name}'][0])) for a in found]
  )
  fig = figure.Figure(
    figsize=(7.2, 1.9 * len(rows) + 0.5), layout='constrained'
  )
  plots.plot_images(
    fig,
    pick('clean'),
    pick('triggered'),
    pick('perturbed'),
    row_labels=[row['model'] for row in rows],
  )
  return fig


def _unit(images: np.ndarray) -> np.ndarray:
  return images / 255 if images.dtype == np.uint8 else images


_FIGURES: dict[str, Callable] = {
  'images': _images,
  'reactivation': _bars,
  'paths': _paths,
}
