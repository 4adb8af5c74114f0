"""Retuning: five poisoned images in a small clean set.

Paper:    Min et al., NeurIPS 2024: 2 % of the training set, 5 epochs at a
          rate of 0.01
Command:  python -m launch.reactivate
            --config=configs/reactivation/retuning_attack.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
Quick:    --config=configs/reactivation/retuning_attack.py:quick
          (toy world, seconds)
"""

from configs import common

# Ours: about as many steps as the paper's, on small sets; five images are then
# several percent of the pool, the paper's half a percent.
_DIGITS = {'split_ratio': 0.1, 'batch_size': 32, 'epochs': 10}
_SMALL = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': {'split_ratio': 0.1, 'batch_size': 16, 'lr': 0.1},
}


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  return common.reactivation(arg, 'retuning_attack', _SMALL)
