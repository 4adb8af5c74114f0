"""FT: fine-tuning on a clean subset, the baseline of all purifications.

Paper:    BackdoorBench (Wu et al., NeurIPS 2022), CIFAR-10, 5 % clean data:
          BadNets 0.8996 / 0.0148 / 0.8939 (C-Acc / ASR / R-Acc); Blended keeps
          ASR 0.9611 (published)
Command:  python -m launch.defend --config=configs/defenses/ft.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/defenses/ft.py:quick (toy world, seconds)
"""

from configs import common

# Ours. The toy world takes FT-SAM's rate, so that the two compare; there FT
# keeps the backdoor, and at a rate of 1 it mostly loses it.
_OTHERS = {
  'tiny_imagenet': {'epochs': 200},
  'tiny_imagenet10': {'epochs': 200},
  'digits16': {'batch_size': 32, 'epochs': 40},
  'digits32': {'batch_size': 32, 'epochs': 40},
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 40},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'ft', _OTHERS, length='epochs')
