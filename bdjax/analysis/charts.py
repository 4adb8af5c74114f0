"""Figures of whole studies: scatters, and lines with their spread.

On the conventions of `plots`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bdjax.analysis import ink

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def plot_scatter(
  ax,
  groups: Mapping[str, tuple[Any, Any]],
  *,
  labels: Mapping[str, Sequence[str]] | None = None,
  xlabel: str,
  ylabel: str,
  title: str | None = None,
) -> 'Axes':
  """Points of several groups: a rate against a number in [0, 1].

  Args:
    ax: matplotlib axes.
    groups: per group (rates [k], numbers [k]).
    labels: per group a short text for each point; None = no texts.
    xlabel: what the rate is.
    ylabel: what the number is.
    title: heading.

  Returns:
    The axes.
  """
  from matplotlib import ticker

  for i, (name, (rates, numbers)) in enumerate(groups.items()):
    x, y = ink.floats(rates), ink.floats(numbers)
    ax.scatter(
      x,
      y,
      s=26,
      color=ink.SERIES[i % len(ink.SERIES)],
      marker=ink.MARKERS[i % len(ink.MARKERS)],
      linewidths=0.4,
      edgecolors='white',
      label=name,
      zorder=3,
      clip_on=False,
    )
    for point in zip(x, y, (labels or {}).get(name, ()), strict=False):
      ax.annotate(
        point[2],
        point[:2],
        xytext=(4, 3 if i % 2 == 0 else -8),
        textcoords='offset points',
        fontsize=6.5,
        color=ink.INK,
      )
  ax.set_xlim(-0.02, 1.02)
  ax.set_ylim(-0.02, 1.02)
  ax.xaxis.set_major_formatter(ticker.PercentFormatter(1.0, symbol=' %'))
  ax.set_xlabel(xlabel)
  ax.set_ylabel(ylabel)
  ax.grid(color='#E6E6E6', linewidth=0.7, zorder=0)
  ax.set_axisbelow(True)
  ink.finish(ax, title, columns=4)
  return ax


def plot_rates(
  ax,
  x,
  series: Mapping[str, Any],
  *,
  xlabel: str,
  ylabel: str = 'ASR',
  is_log: bool = False,
  with_markers: bool = True,
  title: str | None = None,
) -> 'Axes':
  """Rates against a number: one line per series, its spread as a band.

  Args:
    ax: matplotlib axes.
    x: [k].
    series: per line the rates [k], or [n, k] of n models, of which the median
      is drawn and the quartiles shaded.
    xlabel: what x is.
    ylabel: what the rates are.
    is_log: whether x is drawn on a logarithmic scale.
    with_markers: whether each of the k positions is marked.
    title: heading.

  Returns:
    The axes.
  """
  x = np.asarray(x, float)
  for i, (name, rates) in enumerate(series.items()):
    rates = np.atleast_2d(ink.floats(rates))
    color = ink.SERIES[i % len(ink.SERIES)]
    low, middle, high = np.nanpercentile(rates, (25, 50, 75), axis=0)
    if len(rates) > 1:
      ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(
      x,
      middle,
      color=color,
      linewidth=1.6,
      marker=ink.MARKERS[i % len(ink.MARKERS)] if with_markers else '',
      markersize=3.6,
      label=name,
      zorder=3,
    )
  if is_log:
    ax.set_xscale('log')
  ax.set_xlabel(xlabel)
  ink.percent_axis(ax, ylabel, top=1.02)
  ink.finish(ax, title, columns=3)
  return ax


def plot_grouped_bars(
  ax,
  names: Sequence[str],
  series: Mapping[str, Any],
  *,
  ylabel: str = 'ASR',
  is_rate: bool = True,
  title: str | None = None,
) -> 'Axes':
  """Rates of several kinds, side by side for each name.

  Args:
    ax: matplotlib axes.
    names: one group of bars each.
    series: per kind its rates [len(names)].
    ylabel: what the rates are.
    is_rate: whether they are shown in percent.
    title: heading.

  Returns:
    The axes.
  """
  center, width = np.arange(len(names)), 0.8 / len(series)
  for i, (name, rates) in enumerate(series.items()):
    at = center + (i - (len(series) - 1) / 2) * width
    rates = ink.floats(rates)
    color = ink.SERIES[i % len(ink.SERIES)]
    ax.bar(at, np.nan_to_num(rates), 0.9 * width, color=color, label=name)
    ink.write_values(ax, at, rates, percent=is_rate)
  turned = len(names) > 8
  ax.set_xticks(
    center,
    names,
    rotation=35 if turned else 0,
    ha='right' if turned else 'center',
  )
  ax.set_xlim(-0.6, len(names) - 0.4)
  ink.percent_axis(ax, ylabel, top=1.06)
  if not is_rate:
    ax.yaxis.set_major_formatter('{x:.1f}')
  ink.finish(ax, title, columns=4)
  return ax
