"""The goals and whether they are met: python -m tests.benchmarks.goals

A goal is a ratio of two sides of one row, measured in turn in one process; on
accelerators it may be seconds.
"""

from typing import NamedTuple

from tests.benchmarks import table as results


class Goal(NamedTuple):
  """What one row is to reach.

  Attributes:
    work: what is measured.
    row: its name among the results.
    side: ours.
    other: the side it is held against; None = the clock.
    most: the ratio, or the seconds, that it may have.
  """

  work: str
  row: str
  side: str
  other: str | None
  most: float


_STEP = 'training step, PreAct-ResNet18'
GOALS = {
  'cpu': (
    Goal(f'{_STEP}, width 64', 'step_w64_32', 'ours_scanned', 'torch', 1.0),
    Goal(f'{_STEP}, width 16', 'step_w16_32', 'ours_scanned', 'torch', 1.2),
    Goal(
      'epoch with data path, width 64, beside pictures through a DataLoader',
      'epoch_w64',
      'ours_scanned',
      'torch_pictures',
      0.6,
    ),
    Goal(
      'epoch with data path, width 16, beside pictures through a DataLoader',
      'epoch',
      'ours_scanned',
      'torch_pictures',
      0.6,
    ),
    Goal(
      'scanned beside stepped, width 16',
      'step_w16_32',
      'ours_scanned',
      'ours_stepped',
      1.05,
    ),
    Goal(
      'scanned beside stepped, width 64',
      'step_w64_32',
      'ours_scanned',
      'ours_stepped',
      1.05,
    ),
    Goal('evaluation, K = 8, small', 'eval_tiny_k8', 'ours_map', 'torch', 0.7),
    Goal(
      'evaluation, K = 8, PreAct-ResNet18',
      'eval_16_k8',
      'ours_map',
      'torch',
      0.7,
    ),
    Goal(
      'evaluation, K = 4, PreAct-ResNet18, width 64',
      'eval_w64_k4',
      'ours_map',
      'torch',
      0.7,
    ),
    Goal(
      'white-box re-activation, K = 8, small',
      'white_box_tiny_k8',
      'ours_map',
      'torch',
      0.7,
    ),
    Goal(
      'white-box re-activation, K = 8, PreAct-ResNet18',
      'white_box_16_k8',
      'ours_map',
      'torch',
      0.7,
    ),
    Goal(
      'white-box re-activation, K = 2, PreAct-ResNet18, width 64',
      'white_box_w64_k2',
      'ours_map',
      'torch',
      0.7,
    ),
    Goal(
      'BEC, K = 8, small, beside a script per model',
      'bec_tiny_k8',
      'ours_map',
      'torch_reference_each',
      0.1,
    ),
    Goal(
      'BEC, K = 8, PreAct-ResNet18, beside a script per model',
      'bec_16_k8',
      'ours_map',
      'torch_reference_each',
      0.1,
    ),
    Goal(
      'trigger inversion, all classes in one program',
      'inversion',
      'ours_one_program',
      'torch',
      0.5,
    ),
    Goal(
      'square attack, per query, small',
      'black_box_tiny',
      'ours_scanned',
      'torch',
      0.8,
    ),
    Goal(
      'square attack, per query, PreAct-ResNet18',
      'black_box_16',
      'ours_scanned',
      'torch',
      0.8,
    ),
  ),
  'gpu': tuple(
    Goal(
      f'epoch of 50,000 images, PreAct-ResNet18, bfloat16, batch {batch}',
      f'epoch_w64_bf16_b{batch}',
      'ours_scanned',
      None,
      1.0,
    )
    for batch in (128, 512)
  ),
}


def reached(found: dict, goal: Goal) -> float | None:
  """Ours over the other side, or its seconds; None if not measured."""
  sides = found['rows'].get(goal.row, {}).get('sides', {})
  if any(side not in sides for side in (goal.side, goal.other or goal.side)):
    return None
  seconds = sides[goal.side]['median_s']
  return seconds / sides[goal.other]['median_s'] if goal.other else seconds


def table(found: dict, goals: tuple[Goal, ...]) -> str:
  """A Markdown table of all goals.

  The last column holds ours against the rate of a matrix product, and what
  would have to be reached of it to meet the goal; empty for rows that do not
  tell their operations, and where both sides are ours.
  """
  lines = [
    '| work | ratio | goal | met | of a matmul: reached, needed |',
    '|---|---:|---:|---|---:|',
  ]
  for goal in goals:
    value, unit = reached(found, goal), '' if goal.other else ' s'
    shown, met, share = '–', 'not yet measured', ''
    if value is not None:
      shown, met = f'{value:.2f}{unit}', 'yes' if value <= goal.most else 'no'
      share = _shares(found['rows'][goal.row], goal, value)
    lines.append(
      f'| {goal.work} | {shown} | {goal.most:g}{unit} | {met} | {share} |'
    )
  return '\n'.join(lines) + '\n'


def _shares(row: dict, goal: Goal, value: float) -> str:
  """Both shares, as text."""
  if 'flops' not in row or (goal.other or '').startswith('ours'):
    return ''
  now = results.share(row, goal.side)
  return f'{now:.0%}, {now * value / goal.most:.0%}'


if __name__ == '__main__':
  for suite, goals in GOALS.items():
    for path, content in results.measured(suite):
      print(f'\n{path.stem}\n\n{table(content, goals)}')
