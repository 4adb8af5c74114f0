"""Re-activation: attacks on defended models, and the controls beside them.

All are on the contract of `types.Reactivation`: phases that read the
attacker's pool and leave the parameters of a trigger, which is put on top of
the original one, or a model that the plain trigger fools again.
"""

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

REGISTRY: dict[str, registry.Entry] = {
  'white_box': registry.Entry(
    white_box,
    WhiteBoxHParams,
    registry.MethodInfo(
      kind='reactivation',
      stage='inference',
      category='activation',
      subcategory='re_activation',
      access='white_box',
      needs=('trigger_known', 'poisoned_train_set'),
      outputs='perturbation',
      tags=('sample_agnostic', 'additive', 'targeted'),
      paper=(
        'Breaking the False Sense of Security in Backdoor Defense through '
        'Re-Activation Attack'
      ),
      venue='NeurIPS',
      year=2024,
      reference_repo='JulieCarlon/Backdoor-Reactivation-Attack',
    ),
  ),
  'black_box': registry.Entry(
    black_box,
    BlackBoxHParams,
    registry.MethodInfo(
      kind='reactivation',
      stage='inference',
      category='activation',
      subcategory='re_activation',
      access='black_box_score',
      needs=('trigger_known', 'poisoned_train_set'),
      outputs='perturbation',
      tags=('sample_agnostic', 'additive', 'targeted'),
      paper=(
        'Breaking the False Sense of Security in Backdoor Defense through '
        'Re-Activation Attack'
      ),
      venue='NeurIPS',
      year=2024,
      reference_repo='JulieCarlon/Backdoor-Reactivation-Attack',
    ),
  ),
  'transfer': registry.Entry(
    transfer,
    TransferHParams,
    registry.MethodInfo(
      kind='reactivation',
      stage='inference',
      category='activation',
      subcategory='re_activation',
      access='transfer',
      needs=('trigger_known', 'poisoned_train_set', 'surrogate_models'),
      outputs='perturbation',
      tags=('sample_agnostic', 'additive', 'targeted'),
      paper=(
        'Breaking the False Sense of Security in Backdoor Defense through '
        'Re-Activation Attack'
      ),
      venue='NeurIPS',
      year=2024,
      reference_repo='JulieCarlon/Backdoor-Reactivation-Attack',
    ),
  ),
  'retuning_attack': registry.Entry(
    retuning_attack,
    RetuningAttackHParams,
    registry.MethodInfo(
      kind='reactivation',
      stage='deployment',
      category='activation',
      subcategory='retuning',
      access='training_control',
      needs=('trigger_known', 'clean_labelled'),
      outputs='model',
      tags=('targeted', 'label_inconsistent'),
      paper=(
        'Uncovering, Explaining, and Mitigating the Superficial Safety of '
        'Backdoor Defense'
      ),
      venue='NeurIPS',
      year=2024,
      reference_repo='AISafety-HKUST/Backdoor_Safety_Tuning',
    ),
  ),
  'qra': registry.Entry(
    qra,
    QraHParams,
    registry.MethodInfo(
      kind='reactivation',
      stage='inference',
      category='activation',
      subcategory='re_activation',
      access='white_box',
      needs=('trigger_known', 'clean_labelled', 'surrogate_models'),
      outputs='perturbation',
      tags=('sample_specific', 'additive', 'targeted'),
      paper=(
        'Uncovering, Explaining, and Mitigating the Superficial Safety of '
        'Backdoor Defense'
      ),
      venue='NeurIPS',
      year=2024,
      reference_repo='AISafety-HKUST/Backdoor_Safety_Tuning',
    ),
  ),
}
