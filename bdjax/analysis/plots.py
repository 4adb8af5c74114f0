"""Figures from arrays: each function draws onto what it is given.

Rates come as fractions and are shown in percent. Colors are those of Okabe
and Ito, which color-blind readers can tell apart; missing numbers (NaN, None)
are written as 'n/a', never drawn as 0. No function touches matplotlib's
global state.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.analysis import ink

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_CONDITIONS = ('clean', 'triggered', 'triggered + Δ')


def plot_images(
  fig,
  clean,
  triggered,
  perturbed,
  *,
  row_labels: Sequence[str] = (),
  captions: Sequence[Sequence[str]] = (),
  magnify: float | None = None,
) -> np.ndarray:
  """Grid of clean, triggered and perturbed images, and the perturbation.

  The last column shows Δ = `perturbed − triggered` around middle gray,
  enlarged.

  Args:
    fig: matplotlib figure or subfigure, empty.
    clean: [rows, h, w, c], uint8 or float in [0, 1].
    triggered: the same images with the trigger.
    perturbed: the same images with trigger and perturbation.
    row_labels: one per row, such as the attack's name.
    captions: per row, up to three texts below the images, such as what the
      model says.
    magnify: factor on the perturbation; None = one that fills the range.

  Returns:
    Array of axes [rows, 4].
  """
  images = [ink.unit(x) for x in (clean, triggered, perturbed)]
  delta = images[2] - images[1]
  factor = _magnification(delta) if magnify is None else magnify
  images.append(np.clip(0.5 + factor * delta, 0, 1))
  titles = (*_CONDITIONS, f'Δ × {factor:g}')
  axes = fig.subplots(len(delta), 4, squeeze=False)
  for (row, column), ax in np.ndenumerate(axes):
    ink.draw_image(ax, images[column][row])
    if row == 0:
      ax.set_title(titles[column], fontsize=9, color=ink.INK, pad=5)
    if column == 0 and row < len(row_labels):
      ax.set_ylabel(row_labels[row], fontsize=9, color=ink.INK, labelpad=6)
    if row < len(captions) and column < len(captions[row]):
      ax.set_xlabel(
        captions[row][column], fontsize=8, color=ink.INK, labelpad=3
      )
  return axes


def plot_bars(
  ax,
  names: Sequence[str],
  before,
  after,
  reactivated,
  bec,
  *,
  control=None,
  title: str | None = None,
) -> 'Axes':
  """ASR before, after the defense and re-activated, beside BEC.

  Args:
    ax: matplotlib axes.
    names: the defenses, one group of bars each.
    before: ASR of the attacked model, [len(names)] or one number.
    after: ASR of the defended model, [len(names)].
    reactivated: ASR after re-activation, [len(names)].
    bec: backdoor existence coefficient in [0, 1], [len(names)].
    control: ASR of the same perturbation learned on clean inputs, drawn as a
      line across the re-activated bar, [len(names)].
    title: heading, such as the attack's name.

  Returns:
    The axes.
  """
  center, width = np.arange(len(names)), 0.19
  offsets = (np.arange(4) - 1.5) * (width + 0.02)
  series = (
    ('ASR, attacked', before, dict(color=ink.GRAY)),
    ('ASR, defended', after, dict(color=ink.BLUE)),
    ('ASR, re-activated', reactivated, dict(color=ink.VERMILION)),
    ('BEC', bec, dict(color='white', edgecolor=ink.GREEN, hatch='/////')),
  )
  handles = []
  for offset, (label, values, style) in zip(offsets, series, strict=True):
    values = np.broadcast_to(ink.floats(values), center.shape)
    bars = ax.bar(
      center + offset, np.nan_to_num(values), width, label=label, **style
    )
    handles.append(bars)
    percent = label != 'BEC'
    ink.write_values(ax, center + offset, values, percent=percent)
  if control is not None:
    at, half = center + offsets[2], 0.6 * width
    handles.append(
      ax.hlines(
        ink.floats(control),
        at - half,
        at + half,
        color=ink.INK,
        linewidth=1.4,
        label='same attack on clean inputs',
      )
    )
  ax.set_xticks(center, names)
  ax.set_xlim(-0.6, len(names) - 0.4)
  ink.percent_axis(ax, 'ASR', top=1.06)
  ink.unit_axis_on_the_right(ax, 'BEC')
  ink.finish(ax, title, columns=3, handles=handles)
  return ax


def plot_paths(
  ax,
  t,
  treatments: Mapping[str, Mapping[str, Any]],
  *,
  tau_star: float | None = None,
  ends: tuple[str, str] = ('backdoored', 'defended'),
  title: str | None = None,
) -> 'Axes':
  """C-Acc and ASR along a straight path between two models.

  Args:
    ax: matplotlib axes.
    t: positions [k] in [0, 1].
    treatments: per treatment of the BatchNorm statistics the curves 'c_acc'
      and 'asr', each [k]; the first treatment is drawn solid.
    tau_star: position to mark, the largest with ASR ≥ 50 %.
    ends: what lies at t = 0 and at t = 1.
    title: heading, such as the attack's and the defense's name.

  Returns:
    The axes.
  """
  curves = (
    ('c_acc', 'C-Acc', ink.BLUE, 'o'),
    ('asr', 'ASR', ink.VERMILION, 's'),
  )
  lines = ('-', (0, (4, 2)), (0, (1, 1.5)))
  for i, (treatment, values) in enumerate(treatments.items()):
    for field, label, color, marker in curves:
      ax.plot(
        np.asarray(t),
        ink.floats(values[field]),
        color=color,
        linestyle=lines[i % len(lines)],
        linewidth=1.6,
        marker=marker,
        markersize=3.2,
        markerfacecolor=color if i == 0 else 'white',
        markeredgewidth=0.9,
        label=f'{label}, {treatment} BN',
        clip_on=False,
        zorder=3 - i * 0.1,
      )
  if tau_star is not None:
    ink.mark(ax, tau_star, 'τ*')
  ax.set_xlim(0, 1)
  ax.set_xticks(np.linspace(0, 1, 6))
  ax.set_xlabel(f't  (0 = {ends[0]}, 1 = {ends[1]})')
  ink.percent_axis(ax, 'C-Acc · ASR', top=1.0)
  ink.finish(ax, title, columns=2)
  return ax


def plot_heat(
  ax,
  rows: Sequence[str],
  columns: Sequence[str],
  values,
  *,
  texts: Sequence[Sequence[str]] | None = None,
  span: tuple[float, float] = (0.0, 1.0),
  bad: str = 'high',
  title: str | None = None,
) -> 'Axes':
  """A table whose cells are the darker the worse they are.

  Args:
    ax: matplotlib axes.
    rows: names of the rows, such as defenses.
    columns: names of the columns, such as attacks.
    values: [rows, columns]; NaN or None where there is none.
    texts: what to write into the cells; None = percent without a sign.
    span: values of the lightest and the darkest cell, in either order of
      goodness (see `bad`).
    bad: 'high' or 'low', the end that is dark.
    title: heading.

  Returns:
    The axes.

  Raises:
    ValueError: if the shapes disagree.
  """
  values = ink.floats(values)
  if values.shape != (len(rows), len(columns)):
    raise ValueError(
      f'`values` of shape {values.shape} for {len(rows)} rows and '
      f'{len(columns)} columns.'
    )
  low, high = span
  shade = np.clip((values - low) / (high - low), 0, 1)
  shade = shade if bad == 'high' else 1 - shade
  colors = _blend(ink.VERMILION, 0.85 * np.nan_to_num(shade))
  ax.imshow(colors, aspect='auto', interpolation='nearest')
  for (i, j), value in np.ndenumerate(values):
    missing = np.isnan(value)
    text = 'n/a' if missing else f'{100 * value:z.0f}'
    if texts is not None and not missing:
      text = texts[i][j]
    color = ink.GRAY if missing else ink.INK
    ax.text(j, i, text, ha='center', va='center', fontsize=8, color=color)
  ax.set_xticks(range(len(columns)), columns, rotation=30, ha='right')
  ax.set_yticks(range(len(rows)), rows)
  ax.tick_params(labelsize=8, length=0, labelcolor=ink.INK)
  for spine in ax.spines.values():
    spine.set_visible(False)
  if title:
    ax.set_title(title, loc='left', fontsize=10, color=ink.INK, pad=6)
  return ax


def _blend(color: str, share: np.ndarray) -> np.ndarray:
  """RGB between white and a color, [..., 3]."""
  rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  return 1 - share[..., None] * (1 - rgb)


def _magnification(delta: np.ndarray) -> float:
  """A round factor that brings the largest entry close to 1/2."""
  top = float(np.max(np.abs(delta), initial=0))
  if top == 0:
    return 1.0
  steps = np.array([1, 2, 3, 4, 5, 8, 10, 15, 20, 30, 50, 100])
  fitting = steps[steps * top <= 0.5 + 1e-6]
  return float(fitting[-1]) if len(fitting) else 1.0
