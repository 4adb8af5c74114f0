"""MCR: mode connectivity repair, a curve to a fine-tuned copy.

Paper:    Zhao et al., ICLR 2020; BackdoorBench's setting (Wu et al., NeurIPS
          2022) with fresh gradients
Command:  python -m launch.defend --config=configs/defenses/mcr.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: not yet measured here
Quick:    --config=configs/defenses/mcr.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # Ours, not tuned: small sets give few steps, which take a larger rate.
  'digits16': {'lr': 0.05, 'batch_size': 32, 'epochs': 40, 'end_epochs': 40},
  'digits32': {'lr': 0.05, 'batch_size': 32, 'epochs': 40, 'end_epochs': 40},
  # Ours too: FT-SAM's rate, at which the toy world's backdoor stays.
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 20, 'end_epochs': 20},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'mcr', _OTHERS, length='epochs')
