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
MIB = 2**20


def curves(found: dict, stem: str) -> list[tuple[int, dict]]:
  """[(K, row)] of the rows '<stem>_k<K>', by K."""
  rows = {}
  for name, row in found['rows'].items():
    match = re.fullmatch(rf'{stem}_k(\d+)', name)
    if match:
      rows[int(match[1])] = row
  return sorted(rows.items())


def draw(found: dict, stem: str, title: str) -> figure.Figure:
  """Seconds of each side, and temporaries of the program in mode map."""
  points = curves(found, stem)
  fig = figure.Figure(figsize=(8.0, 3.4), layout='constrained')
  left, right = fig.subplots(1, 2)
  for side, (label, color, marker) in SIDES.items():
    times = [
      (k, row['sides'][side]) for k, row in points if side in row['sides']
    ]
    if not times:
      continue
    left.errorbar(
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
  left.set(xscale='log', yscale='log', ylabel='seconds', title=title)
  left.legend(frameon=False, fontsize=8)
  memory = [(k, row['temporary_bytes'] / MIB) for k, row in points]
  right.plot(*zip(*memory, strict=True), color=ink.BLUE, marker='o')
  right.set(xscale='log', ylabel='MiB beside weights and data')
  right.set(title='Temporaries, mode map')
  right.set_ylim(0, 1.3 * max(size for _, size in memory))
  for ax in (left, right):
    ticks = [k for k, _ in points]
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    ax.set_xlabel('K, models')
  return fig


if __name__ == '__main__':
  for path, content in table.measured():
    if len(curves(content, 'eval_tiny')) > 1:
      fig = draw(content, 'eval_tiny', 'Evaluation, small network')
      out = path.with_name(f'{path.stem}-scale.png')
      fig.savefig(out, dpi=150, facecolor='white')
