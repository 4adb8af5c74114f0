"""The results as Markdown: python -m tests.benchmarks.table"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent / 'results'


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


if __name__ == '__main__':
  for path in sorted(FOLDER.glob('*.json')):
    content = json.loads(path.read_text())
    print(f'{path.stem}: {content["versions"]}\n\n{table(content)}')
