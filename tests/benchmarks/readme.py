"""Writes the measured tables into README: python -m tests.benchmarks.readme

Each stands between two comments that name it; what is written between them by
hand is lost. A test holds README to the results.
"""

import pathlib
import re
from collections.abc import Callable

from tests.benchmarks import goals
from tests.benchmarks import table as results

README = pathlib.Path(__file__).parents[2] / 'README.md'

_STEPS = {
  'step_w16_16': 'training step, width 16, 16×16, batch 64',
  'step_w16_32': 'training step, width 16, 32×32, batch 128',
  'step_w64_32': 'training step, width 64, 32×32, batch 64',
  'epoch': 'epoch of 1,024 images with data path, BadNets, width 16',
  'epoch_w64': 'the same, width 64',
}
_RESNET = 'PreAct-ResNet18 width'
_MODELS = {
  f'evaluation, {_RESNET} 16, 256 images of 16×16': ('eval_16', (8,)),
  'the same, 256 images of 32×32': ('eval', (1, 4, 16)),
  'the same, width 64, 128 images': ('eval_w64', (4,)),
  'evaluation, small network, 2,048 images of 8×8': (
    'eval_tiny',
    (1, 8, 32, 64),
  ),
  'BEC, small network': ('bec_tiny', (1, 8, 32, 64)),
  f'BEC, {_RESNET} 16': ('bec_16', (8,)),
  'white-box re-activation, small network': (
    'white_box_tiny',
    (1, 8, 32, 64),
  ),
  f'the same, {_RESNET} 16': ('white_box_16', (8,)),
  'the same, width 64, 32×32': ('white_box_w64', (2,)),
  '3 points of K paths, small network': ('paths_tiny', (1, 8, 32)),
}
_MODES = ('map', 'loop', 'shard', 'vmap')


def steps(found: dict) -> str:
  """Training steps and epochs beside PyTorch."""
  lines = [
    '| work | bdjax | PyTorch | ratio | share of a matmul |',
    '|---|---:|---:|---:|---:|',
  ]
  for name, work in _STEPS.items():
    row = found['rows'][name]
    ours, theirs = _seconds(row, 'ours_scanned'), _seconds(row, 'torch')
    shares = [f'{results.share(row, s):.0%}' for s in ('ours_scanned', 'torch')]
    lines.append(
      f'| {work} | {_shown(ours)} | {_shown(theirs)} | {ours / theirs:.2f} '
      f'| {_bracketed(shares)} |'
    )
  return '\n'.join(lines) + '\n'


def models(found: dict) -> str:
  """Seconds for K models, by mode of the sweep."""
  lines = [
    '| work | K | map | loop | shard (1 device) | vmap | PyTorch '
    '| map / PyTorch |',
    '|---|' + '---:|' * 7,
  ]
  for work, (stem, sizes) in _MODELS.items():
    for k in sizes:
      row = found['rows'][f'{stem}_k{k}']
      ours = [_seconds(row, f'ours_{mode}') for mode in _MODES]
      cells = [f'{x:.2f}' if x is not None else '–' for x in ours]
      theirs = [
        _seconds(row, side)
        for side in ('torch', 'torch_reference_each')
        if side in row['sides']
      ]
      cells += [
        _bracketed([f'{x:.2f}' for x in theirs]),
        _bracketed([f'{ours[0] / x:.2f}' for x in theirs]),
      ]
      lines.append(f'| {work} | {k} | {" | ".join(cells)} |')
      work = ''
  return '\n'.join(lines) + '\n'


def _seconds(row: dict, side: str) -> float | None:
  """Of one unit of the row's work; None where the side was not measured."""
  if side not in row['sides']:
    return None
  # Rows in milliseconds divide by thousandths of what they do in a call.
  scale = 1e-3 if row['unit'].startswith('ms') else 1.0
  return row['sides'][side]['median_s'] / row['per'] * scale


def _shown(seconds: float) -> str:
  """Three or four digits."""
  if seconds >= 1.2:
    return f'{seconds:.2f} s'
  return f'{seconds * 1e3:.{0 if seconds >= 0.1 else 1}f} ms'


def _bracketed(cells: list[str]) -> str:
  """The first, the second in brackets where there is one."""
  first, *rest = cells
  return f'{first} ({rest[0]})' if rest else first


def _measured(suite: str) -> dict:
  """Results of the first device of a suite, without rows if there is none."""
  return next((found for _, found in results.measured(suite)), {'rows': {}})


TABLES: dict[str, Callable[[], str]] = {
  'speed-goals-cpu': lambda: goals.table(_measured('cpu'), goals.GOALS['cpu']),
  'speed-goals-gpu': lambda: goals.table(_measured('gpu'), goals.GOALS['gpu']),
  'speed-steps': lambda: steps(_measured('cpu')),
  'speed-models': lambda: models(_measured('cpu')),
}


def filled(text: str) -> str:
  """The text with each table as the results have it.

  Raises:
    ValueError: if the comments of a table are missing.
  """
  for name, make in TABLES.items():
    begin, end = f'<!-- {name}:begin -->\n', f'<!-- {name}:end -->'
    pattern = re.escape(begin) + '.*?' + re.escape(end)
    whole = begin + make() + end
    text, count = re.subn(pattern, lambda _, w=whole: w, text, flags=re.S)
    if count != 1:
      raise ValueError(
        f'README names the table {name!r} {count} times; put it once between '
        f'{begin.strip()} and {end}.'
      )
  return text


if __name__ == '__main__':
  text = README.read_text(encoding='utf-8')
  README.write_text(filled(text), encoding='utf-8')
