"""Published figures, and how far ours may be from them.

CIFAR-10, PreAct-ResNet18, 10 % poisoning (SIG and LC 5 %), target 0, 5 % clean
data, last epoch, one run each, in percent. Checkpoints of our own differ from
theirs, so that the pattern comes first, which cell collapses and which
survives, and values second. Cells whose published code is known to be faulty or
which were selected on the test set are left out: no implementation should hit
them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_BENCH = 'BackdoorBench v2 leaderboard (arXiv 2401.15002)'
_FT_SAM = 'Zhu et al., ICCV 2023, Table 1'

SURVIVES = 50.0  # published ASR from which a backdoor counts as alive
BAND_C_ACC = 2.0  # points, as between runs of one recipe
BAND_ASR = 10.0
# Attacks themselves differ less between runs than defenses do.
ATTACK_BAND_C_ACC = 1.0
ATTACK_BAND_ASR = 3.0

# Where the published ratio is not 10 %: clean-label attacks, for which 10 % is
# all of the target class.
RATIOS = {'sig': 0.05, 'lc': 0.05}


class Figure(NamedTuple):
  """One published cell, in percent."""

  attack: str
  defense: str | None
  c_acc: float
  asr: float
  source: str


FIGURES = (
  Figure('badnets', None, 91.32, 95.03, _BENCH),
  Figure('badnets', None, 91.82, 93.79, _FT_SAM),
  Figure('badnets', 'ft', 89.96, 1.48, _BENCH),
  Figure('badnets', 'ft', 90.29, 1.70, _FT_SAM),
  Figure('badnets', 'ft_sam', 92.21, 1.63, _FT_SAM),
  Figure('badnets', 'fp', 91.77, 0.84, _FT_SAM),
  Figure('badnets', 'nad', 89.87, 2.14, _BENCH),
  Figure('badnets', 'nad', 88.82, 1.96, _FT_SAM),
  Figure('badnets', 'nc', 89.05, 1.27, _BENCH),
  Figure('badnets', 'i_bau', 87.43, 4.48, _FT_SAM),
  Figure('blended', None, 93.47, 99.92, _BENCH),
  Figure('blended', None, 93.44, 97.71, _FT_SAM),
  Figure('blended', 'ft', 92.78, 96.11, _BENCH),
  Figure('blended', 'ft', 92.48, 82.22, _FT_SAM),
  Figure('blended', 'ft_sam', 92.44, 4.91, _FT_SAM),
  Figure('blended', 'fp', 92.57, 8.32, _FT_SAM),
  Figure('blended', 'nad', 92.17, 97.69, _BENCH),
  Figure('blended', 'nad', 92.09, 55.04, _FT_SAM),
  Figure('blended', 'nc', 93.47, 99.92, _BENCH),
  Figure('blended', 'nc', 91.91, 84.31, _FT_SAM),
  Figure('blended', 'i_bau', 87.00, 50.53, _BENCH),
  Figure('blended', 'i_bau', 88.24, 6.00, _FT_SAM),
  Figure('blended', 'clp', 91.32, 99.74, _BENCH),
  Figure('lf', None, 93.19, 99.28, _BENCH),
  Figure('ssba', None, 92.88, 97.86, _BENCH),
  Figure('trojannn', None, 93.42, 100.00, _BENCH),
  Figure('wanet', None, 91.25, 89.73, _BENCH),
  Figure('input_aware', None, 90.67, 98.26, _BENCH),
  Figure('sig', None, 93.64, 97.09, _BENCH),
  Figure('lc', None, 93.29, 99.50, _BENCH),
)
# All attacks with a figure of their own.
ATTACKS = tuple(dict.fromkeys(f.attack for f in FIGURES))


class Comparison(NamedTuple):
  """One cell, ours beside the published, in percent.

  Attributes:
    attack: registry key.
    defense: registry key, None for the attacked model itself.
    c_acc: ours.
    asr: ours.
    published_c_acc: (lowest, highest) of the sources.
    published_asr: (lowest, highest) of the sources.
    same_pattern: whether the backdoor lives or dies as published; None where
      the sources disagree about that.
    in_band: whether both rates lie in the sources' hull, widened by
      `BAND_C_ACC` and `BAND_ASR`, for attacks themselves by their own.
    sources: where the figures come from.
  """

  attack: str
  defense: str | None
  c_acc: float
  asr: float
  published_c_acc: tuple[float, float]
  published_asr: tuple[float, float]
  same_pattern: bool | None
  in_band: bool
  sources: tuple[str, ...]


def compare(rows: Iterable[Mapping[str, Any]]) -> list[Comparison]:
  """Our rows beside the published cells; rows without one are left out.

  Args:
    rows: of `zoo.tables.rows`, rates as fractions.

  Returns:
    One comparison per row that has published figures, in the rows' order.
  """
  found = []
  for row in rows:
    key = (row['attack'], row.get('defense'))
    figures = [f for f in FIGURES if (f.attack, f.defense) == key]
    if figures and row.get('asr') is not None:
      found.append(_one(100 * row['c_acc'], 100 * row['asr'], figures))
  return found


def _one(c_acc: float, asr: float, figures: list[Figure]) -> Comparison:
  hull_c_acc = _hull(f.c_acc for f in figures)
  hull_asr = _hull(f.asr for f in figures)
  lives = {f.asr >= SURVIVES for f in figures}
  bands = (BAND_C_ACC, BAND_ASR)
  if figures[0].defense is None:
    bands = (ATTACK_BAND_C_ACC, ATTACK_BAND_ASR)
  return Comparison(
    attack=figures[0].attack,
    defense=figures[0].defense,
    c_acc=round(c_acc, 2),
    asr=round(asr, 2),
    published_c_acc=hull_c_acc,
    published_asr=hull_asr,
    same_pattern=None if len(lives) > 1 else (asr >= SURVIVES) in lives,
    in_band=_is_near(c_acc, hull_c_acc, bands[0])
    and _is_near(asr, hull_asr, bands[1]),
    sources=tuple(f.source for f in figures),
  )


def _hull(values: Iterable[float]) -> tuple[float, float]:
  values = tuple(values)
  return min(values), max(values)


def _is_near(value: float, hull: tuple[float, float], band: float) -> bool:
  return hull[0] - band <= value <= hull[1] + band


def to_markdown(found: Iterable[Comparison]) -> str:
  """The comparisons as a table."""
  lines = [
    '| attack | defense | C-Acc | published | ASR | published | pattern '
    '| in band |',
    '|---|---|---:|---:|---:|---:|---|---|',
  ]
  words = {True: 'yes', False: 'no', None: 'sources differ'}
  for one in found:
    published = (
      f'{low:.1f}' if low == high else f'{low:.1f} … {high:.1f}'
      for low, high in (one.published_c_acc, one.published_asr)
    )
    c_acc, asr = published
    lines.append(
      f'| {one.attack} | {one.defense or "–"} | {one.c_acc:.1f} | {c_acc} '
      f'| {one.asr:.1f} | {asr} | {words[one.same_pattern]} '
      f'| {words[one.in_band]} |'
    )
  return '\n'.join(lines) + '\n'
