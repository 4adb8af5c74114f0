"""Transfer re-activation: learned on other defended models, used on this one.

Paper:    Zhu, Liang, Wu, NeurIPS 2024: L∞ 0.05, 100 passes over up to 5,000
          images; surrogates are other defenses of the same attacked model
Command:  python -m launch.reactivate --config=configs/reactivation/transfer.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
Quick:    --config=configs/reactivation/transfer.py:quick
          (toy world, seconds)
Surrogates: of each attacked model the first `method.num_surrogates` defended
          versions, in the order of `surrogates`, other than the one under
          attack. None = all that --parents names, in its order.
"""

from ml_collections import config_dict

from configs import common

# Ours: fewer and larger steps, on as many images as there are.
_DIGITS = {'pool_size': 320, 'batch_size': 64, 'outer_epochs': 5, 'lr': 0.2}
_SMALL = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': {
    'pool_size': 128,
    'batch_size': 64,
    'outer_epochs': 20,
    'num_surrogates': 1,
  },
}


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  config = common.reactivation(arg, 'transfer', _SMALL)
  config.surrogates = config_dict.placeholder(tuple)
  return config
