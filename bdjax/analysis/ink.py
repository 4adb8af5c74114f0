"""What all figures share: colors, percent axes, legends, single images."""

import numpy as np

BLUE, VERMILION, ORANGE, GREEN, INK, GRAY = (
  '#0072B2',
  '#D55E00',
  '#E69F00',
  '#009E73',
  '#222222',
  '#9A9A9A',
)
SERIES = (VERMILION, BLUE, GREEN, ORANGE, '#CC79A7', '#56B4E9', INK, GRAY)
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')


def floats(values) -> np.ndarray:
  """Numbers as floats, None as NaN."""
  return np.asarray(values, dtype=np.float64)


def write_values(ax, at, values, *, percent: bool) -> None:
  """The number above each bar, 'n/a' where there is none."""
  for x, value in zip(at, values, strict=True):
    missing = np.isnan(value)
    short = f'{100 * value:.0f}' if percent else f'{value:.2f}'.lstrip('0')
    ax.annotate(
      'n/a' if missing else short,
      (x, 0 if missing else max(value, 0)),
      xytext=(0, 1.5),
      textcoords='offset points',
      ha='center',
      va='bottom',
      rotation=90 if missing else 0,
      fontsize=6.5,
      color=GRAY if missing else INK,
    )


def mark(ax, position: float, text: str) -> None:
  """A labeled vertical line."""
  ax.axvline(position, color=GRAY, linewidth=0.9, linestyle=':', zorder=1)
  ax.annotate(
    f'{text} = {position:g}',
    (position, 1.0),
    xycoords=('data', 'axes fraction'),
    xytext=(3, -3),
    textcoords='offset points',
    ha='left',
    va='top',
    fontsize=8,
    color=INK,
  )


def percent_axis(ax, label: str, top: float) -> None:
  """Fractions shown as percent, with light lines behind the data."""
  from matplotlib import ticker

  ax.set_ylim(0, top)
  ax.set_yticks(np.linspace(0, 1, 6))
  ax.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, symbol=' %'))
  ax.set_ylabel(label)
  ax.grid(axis='y', color='#E6E6E6', linewidth=0.7, zorder=0)
  ax.set_axisbelow(True)


def unit_axis_on_the_right(ax, label: str) -> None:
  """The same scale from 0 to 1, for what is not a rate."""
  right = ax.secondary_yaxis('right')
  right.set_yticks(np.linspace(0, 1, 6))
  right.set_ylabel(label, fontsize=9, color=INK)
  right.tick_params(labelsize=8, width=0.7, length=3, color=INK)
  right.spines['right'].set(linewidth=0.7, color=INK)


def finish(ax, title: str | None, columns: int, handles=None) -> None:
  """Spines, text sizes, legend above the axes, heading above the legend."""
  for side in ('top', 'right'):
    ax.spines[side].set_visible(False)
  for side in ('left', 'bottom'):
    ax.spines[side].set(linewidth=0.7, color=INK)
  ax.tick_params(labelsize=8, width=0.7, length=3, color=INK)
  for label in (ax.xaxis.label, ax.yaxis.label):
    label.set(fontsize=9, color=INK)
  handles = ax.get_legend_handles_labels()[0] if handles is None else handles
  ax.legend(
    handles=handles,
    loc='lower left',
    bbox_to_anchor=(0, 1.0),
    ncols=columns,
    frameon=False,
    fontsize=7.5,
    handlelength=2.0,
    columnspacing=1.2,
    borderaxespad=0.3,
  )
  if title:
    rows = -(-len(handles) // columns)
    ax.set_title(title, loc='left', fontsize=10, color=INK, pad=8 + 13 * rows)


def unit(images) -> np.ndarray:
  """Images as floats in [0, 1]."""
  images = np.asarray(images)
  scale = 255 if images.dtype == np.uint8 else 1
  return images.astype(np.float32) / scale


def draw_image(ax, image: np.ndarray) -> None:
  """One image without ticks, gray where it has one channel."""
  gray = image.shape[-1] == 1
  shown = image[..., 0] if gray else image
  ax.imshow(
    shown, cmap='gray', vmin=0, vmax=1, interpolation='nearest', aspect='equal'
  )
  ax.set(xticks=[], yticks=[])
  for spine in ax.spines.values():
    spine.set(linewidth=0.5, color=GRAY)
