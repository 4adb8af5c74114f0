"""FP: fine-pruning, pruning of dormant units and then fine-tuning.

Paper:    Liu et al., RAID 2018; settings of Wu et al., NeurIPS 2022
Command:  python -m launch.defend --config=configs/defenses/fp.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/fp.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # One cosine in place of the benchmark's reduction on plateaus.
  'tiny_imagenet': {'epochs': 200},
  'tiny_imagenet10': {'epochs': 200},
  # Ours: small sets take small batches and a larger rate.
  'digits16': {'lr': 0.05, 'batch_size': 32, 'epochs': 60},
  'digits32': {'lr': 0.05, 'batch_size': 32, 'epochs': 60},
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 20},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'fp', _OTHERS, length='epochs')
