"""Time and memory against the number of models, drawn from the results.

python -m tests.benchmarks.scale
"""

import re

from matplotlib import figure

from bdjax.analysis import ink
from tests.benchmarks import table

SIDES = {
  'ours_map': ('bdjax, map', ink.BLUE, 'o'),
  'ours_vmap': ('bdjax, vmap', ink.ORANGE, '^'),
  'ours_shard': ('bdjax, shard', ink.GREEN, 'D'),
  'torch': ('PyTorch, one by one', ink.VERMILION, 's'),
}
INSTRUMENTS = {
  'eval_tiny': 'Evaluation',
  'bec_tiny': 'BEC',
  'white_box_tiny': 'White-box re-activation',
}
MIB = 2**20


def curves(found: dict, stem: str) -> list[tuple[int, dict]]:
  """[(K, row)] of the rows '<stem>_k<K>', by K."""
  rows = {}
  for name, row in found['rows'].items():
    match = re.fullmatch(rf'{stem}_k(\d+)', name)
    if match:
      rows[int(match[1])] = row
  return sorted(rows.items())


def draw(found: dict) -> figure.Figure:
  """A column per instrument: seconds of each side, temporaries in mode map."""
  shown = {
    title: points
    for stem, title in INSTRUMENTS.items()
    if len(points := curves(found, stem)) > 1
  }
  fig = figure.Figure(figsize=(3.6 * len(shown), 5.6), layout='constrained')
  axes = fig.subplots(2, len(shown), squeeze=False, sharex=True)
  for (title, points), (above, below) in zip(
    shown.items(), axes.T, strict=True
  ):
    _draw_times(above, points)
    above.set(title=title, xscale='log', yscale='log')
    memory = [
      (k, row['temporary_bytes'] / MIB)
      for k, row in points
      if 'temporary_bytes' in row
    ]
    below.plot(*zip(*memory, strict=True), color=ink.BLUE, marker='o')
    below.set(xlabel='K, models')
    below.set_ylim(0, 1.3 * max(size for _, size in memory))
    ticks = [k for k, _ in points]
    below.set_xticks(ticks, [str(k) for k in ticks])
    below.minorticks_off()
  axes[0, 0].set_ylabel('seconds')
  axes[1, 0].set_ylabel('MiB of temporaries, map')
  axes[0, 0].legend(frameon=False, fontsize=8)
  return fig


def _draw_times(ax, points) -> None:
  for side, (label, color, marker) in SIDES.items():
    times = [
      (k, row['sides'][side]) for k, row in points if side in row['sides']
    ]
    if not times:
      continue
    ax.errorbar(
      [k for k, _ in times],
      [t['median_s'] for _, t in times],
      yerr=[
        [t['median_s'] - t['low_s'] for _, t in times],
        [t['high_s'] - t['median_s'] for _, t in times],
      ],
      label=label,
      color=color,
      marker=marker,
      capsize=2,
    )


if __name__ == '__main__':
  for path, content in table.measured():
    if len(curves(content, 'eval_tiny')) > 1:
      out = path.with_name(f'{path.stem}-scale.png')
      draw(content).savefig(out, dpi=150, facecolor='white')
