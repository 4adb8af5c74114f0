"""PAM: unlearns an inverted trigger as seen from the path to the backdoor.

Paper:    Min et al., NeurIPS 2024
Command:  python -m launch.defend --config=configs/defenses/pam.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; digits16, width 16: C-Acc 99.2,
          ASR 0.0 (BadNets); C-Acc 96.1, ASR 0.0 (Blended)
Quick:    --config=configs/defenses/pam.py:quick (toy world, seconds)
"""

from configs import common

# Ours. Few clean images make few steps, which take larger rates; those of the
# inversion, and the one round on digits, are BTI-DBF's here. The toy world's
# rate and length were chosen by its own ASR, among twenty settings.
_DIGITS = {
  'lr': 0.05,
  'generator_lr': 0.01,
  'batch_size': 32,
  'rounds': 1,
  'width': 8,
}
_OTHERS = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': {
    'lr': 1.0,
    'rho': 2.0,
    'generator_lr': 0.01,
    'batch_size': 32,
    'rounds': 1,
    'pretrain_epochs': 20,
    'unlearn_epochs': 20,
    'width': 8,
    'levels': 1,
  },
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'pam', _OTHERS, length='rounds')
