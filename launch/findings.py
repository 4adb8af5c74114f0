"""What a study found, in sentences, and whether published findings hold."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdjax import zoo

ALIVE = zoo.tables.ALIVE
LEAD = 0.25  # lead over a control that counts
LOW = 0.1  # ASR that a defense would report as success

Rows = Sequence[dict[str, Any]]


class Check(NamedTuple):
  """A published finding against this study.

  Attributes:
    claim: the finding.
    holds: whether it holds here; None where nothing was measured.
    numbers: what was measured.
  """

  claim: str
  holds: bool | None
  numbers: str


def summary(rows: Rows) -> str:
  """Markdown: a summary, the published findings, what to keep in mind.

  Args:
    rows: from `zoo.tables.rows`.
  """
  parts = ['## In short\n', _in_short(rows), '## Published findings\n']
  parts.append('| finding | here | numbers |\n|---|---|---|')
  for check in checks(rows):
    word = {True: 'holds', False: 'does not hold', None: 'not measured'}
    parts.append(f'| {check.claim} | {word[check.holds]} | {check.numbers} |')
  return '\n'.join([*parts, '', _CAVEATS])


def removed(rows: Rows) -> list[dict[str, Any]]:
  """Defended models whose backdoor worked before and does not any more."""
  return [
    row
    for row in rows
    if row['stage'] == 'defend'
    and (row.get('base_asr') or 0) >= ALIVE
    and row['asr'] is not None
    and row['asr'] < ALIVE
  ]


def checks(rows: Rows) -> list[Check]:
  """The published findings, each against the rows."""
  return [make(rows) for make in _CHECKS]


def _in_short(rows) -> str:
  """How many models look safe, and how many are."""
  defended = [row for row in rows if row['stage'] == 'defend']
  worked = [r for r in defended if (r.get('base_asr') or 0) >= ALIVE]
  safe = removed(rows)
  lines = [
    f'- Of {len(worked)} defended models whose attack worked, {len(safe)} have '
    f'an ASR below {ALIVE:.0%}.'
  ]
  for name, words in _WAYS.items():
    known = [r for r in safe if r.get(f'{name}_asr') is not None]
    woken = [r for r in known if _lead(r, name) >= LEAD]
    if known:
      lines.append(
        f'- {words} wakes {len(woken)} of {len(known)} of them: at least '
        f'{LEAD:.0%} more than both controls and the plain trigger reach.'
      )
  known = [r for r in safe if r.get('p_asr') is not None]
  if known:
    floor = lambda r: max(r['retuned_clean_asr'], r['asr'])
    back = [r for r in known if r['p_asr'] - floor(r) >= LEAD]
    lines.append(
      f'- Retuning on a few poisoned images brings {len(back)} of '
      f'{len(known)} of them back.'
    )
  known = [r for r in safe if r.get('bec') is not None]
  if known:
    alike = [r for r in known if r['bec'] >= 0.5]
    lines.append(
      f'- {len(alike)} of {len(known)} of them keep a BEC of 0.5 or more.'
    )
  return '\n'.join(lines) + '\n'


def _lead(row, name) -> float:
  """Rate of an attack above both its controls and the plain trigger's."""
  others = [row[f'{name}_clean_input'], row[f'{name}_clean_model'], row['asr']]
  return row[f'{name}_asr'] - max(o for o in others if o is not None)


def _pairs(rows, *names) -> np.ndarray:
  """Columns of the models that have all of these numbers, [n, len(names)]."""
  found = [[r.get(n) for n in names] for r in removed(rows)]
  known = [values for values in found if None not in values]
  return np.array(known, float).reshape(-1, len(names))


def _existence(rows) -> Check:
  values = _pairs(rows, 'asr', 'bec')
  low = values[values[:, 0] < LOW] if len(values) else values
  claim = f'P1 many models of ASR < {LOW:.0%} keep a BEC above 0.3'
  if not len(low):
    return Check(claim, None, '–')
  share = float(np.mean(low[:, 1] > 0.3))
  return Check(
    claim,
    share > 0.5,
    f'{share:.0%} of {len(low)}; median BEC {np.median(low[:, 1]):.2f}',
  )


def _access(rows) -> Check:
  claim = 'P2 white-box ≥ black-box ≫ ASR after the defense'
  values = _pairs(rows, 'white_box_asr', 'black_box_asr', 'asr')
  if not len(values):
    return Check(claim, None, '–')
  white, black, plain = np.median(values, axis=0)
  holds = bool(white >= black and black - plain >= LEAD)
  return Check(claim, holds, f'medians {white:.0%}, {black:.0%}, {plain:.0%}')


def _universal(rows) -> Check:
  claim = 'P3 with the trigger queries achieve far more than without'
  values = _pairs(rows, 'black_box_asr', 'black_box_clean_input')
  if not len(values):
    return Check(claim, None, '–')
  with_it, without = np.median(values, axis=0)
  return Check(
    claim,
    bool(with_it - without >= LEAD),
    f'medians {with_it:.0%} against {without:.0%}',
  )


def _transfers(rows) -> Check:
  claim = 'P6 perturbations transfer from other defended models'
  values = _pairs(rows, 'transfer_asr', 'asr', 'transfer_clean_input')
  if not len(values):
    return Check(claim, None, '–')
  woken, plain, control = np.median(values, axis=0)
  return Check(
    claim,
    bool(woken - max(plain, control) >= LEAD),
    f'medians {woken:.0%} against {plain:.0%} before and {control:.0%} on '
    'clean inputs',
  )


_LASTING = ('exact_purification', 'pam')


def _superficial(rows) -> Check:
  claim = (
    'P7 retuning brings all back but exact purification and PAM; the clean '
    'model stays clean'
  )
  known = [r for r in removed(rows) if r.get('p_asr') is not None]
  if not known:
    return Check(claim, None, '–')
  usual = [r['p_asr'] for r in known if r['defense'] not in _LASTING]
  lasting = [r['p_asr'] for r in known if r['defense'] in _LASTING]
  clean = [r['retuned_clean_asr'] for r in known]
  medians = [float(np.median(x)) if x else np.nan for x in (usual, lasting)]
  holds = bool(
    medians[0] - np.median(clean) >= LEAD and medians[0] - medians[1] >= LEAD
  )
  return Check(
    claim,
    holds if usual and lasting else None,
    f'median P-ASR {_percent(medians[0])}; exact purification and PAM '
    f'{_percent(medians[1])}; clean model {np.median(clean):.0%}',
  )


def _percent(value: float) -> str:
  """A rate in percent, a dash where there is none."""
  return '–' if np.isnan(value) else f'{value:.0%}'


def _rho(rows) -> Check:
  claim = 'P8 a larger ρ of PAM: higher error along the path, lower C-Acc'
  groups: dict[str, list] = {}
  for row in rows:
    known = row.get('backdoor_error_auc') is not None
    if row['stage'] == 'defend' and row['defense'] == 'pam' and known:
      groups.setdefault(row['parents'][0], []).append(row)
  several = [g for g in groups.values() if len(g) > 1]
  if not several:
    return Check(claim, None, '–')
  group = sorted(several[0], key=lambda row: rho_of(row))
  error = [row['backdoor_error_auc'] for row in group]
  accuracy = [row['c_acc'] for row in group]
  holds = error[-1] > error[0] and accuracy[-1] < accuracy[0]
  cells = [
    f'ρ {rho_of(r):g}: {e:.2f}, {a:.1%}'
    for r, e, a in zip(group, error, accuracy, strict=True)
  ]
  return Check(claim, bool(holds), '; '.join(cells))


def rho_of(row) -> float:
  """ρ of a PAM row: in its variant's name, or the default."""
  name, _, value = (row.get('variant') or '').partition('=')
  return float(value) if name == 'rho' else 0.5


def _qra(rows) -> Check:
  claim = 'P9 QRA: high on the defended model, low on the clean one'
  values = _pairs(rows, 'qra_asr', 'qra_clean_model')
  if not len(values):
    return Check(claim, None, '–')
  mine, clean = np.median(values, axis=0)
  return Check(
    claim,
    bool(mine >= ALIVE and mine - clean >= LEAD),
    f'medians {mine:.0%} against {clean:.0%}',
  )


_CHECKS: tuple[Callable[[Rows], Check], ...] = (
  _existence,
  _access,
  _universal,
  _transfers,
  _superficial,
  _rho,
  _qra,
)
_WAYS = {
  'white_box': 'A perturbation learned with gradients',
  'black_box': 'One found by queries alone',
  'transfer': 'One learned on other defended models',
  'qra': 'A learned perturbation of each image (QRA)',
}
_CAVEATS = """\
## To keep in mind

- BEC compares features on finitely many images, where even unrelated networks
  look alike; the clean model's similarity is subtracted for that reason, and a
  BEC only compares with others of the same images, layers and share p.
- *Control: clean input* is the same attack without the trigger: what it reaches
  is an adversarial perturbation, not the backdoor. *Control: clean model* is
  the same attack on a model that never had one.
- A controlled attack that fails proves nothing: another budget may succeed.
- P-ASR stands against the same retuning of the clean model, since training on
  poisoned images also implants backdoors anew.
- τ* is the largest t of the straight path at which the trigger works on half
  of the images, t = 0 being the attacked model; statistics of BatchNorm are
  recomputed at every t.
"""
