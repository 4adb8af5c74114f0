"""Re-activation: attacks on defended models, and the controls beside them.

All are on the contract of `types.Reactivation`: phases that read the
attacker's pool and leave the parameters of a trigger, which is put on top of
the original one, or a model that the plain trigger fools again.
"""

import functools
from collections.abc import Callable
from typing import Any

from bdjax import registry
from bdjax.reactivation import controls as controls
from bdjax.reactivation import pools as pools
from bdjax.reactivation.black_box import BlackBoxHParams as BlackBoxHParams
from bdjax.reactivation.black_box import black_box as black_box
from bdjax.reactivation.qra import QraHParams as QraHParams
from bdjax.reactivation.qra import qra as qra
from bdjax.reactivation.retuning_attack import (
  RetuningAttackHParams as RetuningAttackHParams,
)
from bdjax.reactivation.retuning_attack import (
  retuning_attack as retuning_attack,
)
from bdjax.reactivation.transfer import TransferHParams as TransferHParams
from bdjax.reactivation.transfer import transfer as transfer
from bdjax.reactivation.white_box import WhiteBoxHParams as WhiteBoxHParams
from bdjax.reactivation.white_box import white_box as white_box


def _perturbing(
  make: Callable[..., Any],
  hparams: type,
  access: str,
  *,
  needs: tuple[str, ...] = ('poisoned_train_set',),
  **facts: Any,
) -> registry.Entry:
  """An entry of a method that puts a perturbation on top of the trigger."""
  return _waking(
    make,
    hparams,
    stage='inference',
    subcategory='re_activation',
    access=access,
    needs=('trigger_known', *needs),
    outputs='perturbation',
    **facts,
  )


def _waking(
  make: Callable[..., Any], hparams: type, **facts: Any
) -> registry.Entry:
  """An entry of a re-activation."""
  info = registry.MethodInfo(
    kind='reactivation',
    category='activation',
    venue='NeurIPS',
    year=2024,
    **facts,
  )
  return registry.Entry(make, hparams, info)


_universal = functools.partial(
  _perturbing,
  tags=('sample_agnostic', 'additive', 'targeted'),
  paper=(
    'Breaking the False Sense of Security in Backdoor Defense through '
    'Re-Activation Attack'
  ),
  reference_repo='JulieCarlon/Backdoor-Reactivation-Attack',
)
_SUPERFICIAL = {
  'paper': (
    'Uncovering, Explaining, and Mitigating the Superficial Safety of '
    'Backdoor Defense'
  ),
  'reference_repo': 'AISafety-HKUST/Backdoor_Safety_Tuning',
}

REGISTRY: dict[str, registry.Entry] = {
  'white_box': _universal(white_box, WhiteBoxHParams, 'white_box'),
  'black_box': _universal(black_box, BlackBoxHParams, 'black_box_score'),
  'transfer': _universal(
    transfer,
    TransferHParams,
    'transfer',
    needs=('poisoned_train_set', 'surrogate_models'),
  ),
  'retuning_attack': _waking(
    retuning_attack,
    RetuningAttackHParams,
    stage='deployment',
    subcategory='retuning',
    access='training_control',
    needs=('trigger_known', 'clean_labelled'),
    outputs='model',
    tags=('targeted', 'label_inconsistent'),
    **_SUPERFICIAL,
  ),
  'qra': _perturbing(
    qra,
    QraHParams,
    'white_box',
    needs=('clean_labelled', 'surrogate_models'),
    tags=('sample_specific', 'additive', 'targeted'),
    **_SUPERFICIAL,
  ),
}
