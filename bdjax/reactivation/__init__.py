"""Re-activation: attacks on defended models, and the controls beside them.

All are on the contract of `types.Reactivation`: phases that read the
attacker's pool and leave the parameters of a trigger, which is put on top of
the original one.
"""

from bdjax import registry
from bdjax.reactivation import controls as controls
from bdjax.reactivation import pools as pools
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
}
