"""The results as Markdown: python -m tests.benchmarks.table"""

import json
import pathlib
from collections.abc import Iterator

FOLDER = pathlib.Path(__file__).parent / 'results'
MIB = 2**20


def measured(suite: str = '*') -> Iterator[tuple[pathlib.Path, dict]]:
  """(file, content) of the benchmarks' results, of one suite or all."""
  for path in sorted(FOLDER.glob(f'{suite}-*.json')):
    content = json.loads(path.read_text())
    if 'rows' in content:
      yield path, content


def table(found: dict) -> str:
  """One line per row: medians with spread, and ratios to PyTorch."""
  lines = [
    '| work | side | median (low … high) | first call | ours / torch |',
    '|---|---|---:|---:|---:|',
  ]
  for row in found['rows'].values():
    sides = row['sides']
    torch = sides.get('torch', {}).get('median_s')
    for name, side in sides.items():
      value, low, high = (
        f'{side[k] / row["per"]:.3g}' for k in ('median_s', 'low_s', 'high_s')
      )
      is_ours = name.startswith('ours')
      ratio = f'{side["median_s"] / torch:.2f}' if torch and is_ours else '–'
      lines.append(
        f'| {row["what"]} | {name.replace("_", " ")} | {value} ({low} … '
        f'{high}) {row["unit"]} | {side["first_s"]:.1f} s | {ratio} |'
      )
  return '\n'.join(lines) + '\n'


def share(row: dict, side: str) -> float:
  """Operations per second of a side over those of a product of squares."""
  rate = row['flops'] / row['sides'][side]['median_s']
  return rate / row['matmul']['flops_per_s']


def roofline_table(found: dict) -> str:
  """Operations per second of both sides, beside those of a product of squares.

  Empty where no row tells its operations.
  """
  lines = [
    '| work | side | GFLOP/s | share of a matmul |',
    '|---|---|---:|---:|',
  ]
  for row in found['rows'].values():
    if 'flops' not in row:
      continue
    for name in ('ours_scanned', 'ours_map', 'ours_one_program', 'torch'):
      if name in row['sides']:
        rate = row['flops'] / row['sides'][name]['median_s']
        lines.append(
          f'| {row["what"]} | {name.replace("_", " ")} | {rate / 1e9:.3g} | '
          f'{share(row, name):.0%} |'
        )
  return '\n'.join(lines) + '\n' if len(lines) > 2 else ''


def memory_table(found: dict) -> str:
  """One line per row and budget; empty where no row was bounded."""
  lines = [
    f'| {row["what"]} | {int(budget) / MIB:.0f} | {entry["chunk"]} | '
    f'{entry["bytes"] / MIB:.1f} |'
    for row in found['rows'].values()
    for budget, entry in row.get('chunk_by_budget', {}).items()
  ]
  if not lines:
    return ''
  head = [
    '| work | budget, MiB | models at a time | temporaries, MiB |',
    '|---|---:|---:|---:|',
  ]
  return '\n'.join(head + lines) + '\n'


if __name__ == '__main__':
  for path, content in measured():
    for versions in {str(row['versions']) for row in content['rows'].values()}:
      print(versions)
    print(f'\n{path.stem}\n\n{table(content)}')
    print(roofline_table(content))
    print(memory_table(content))
