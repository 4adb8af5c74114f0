"""BNP: pruning of channels whose clean statistics are not the stored ones.

Paper:    Zheng et al., NeurIPS 2022; u = 3, Tiny ImageNet u = 4
Command:  python -m launch.defend --config=configs/defenses/bnp.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/bnp.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  'tiny_imagenet': {'u': 4.0},
  'tiny_imagenet10': {'u': 4.0},
  # Ours, chosen on BadNets: narrow layers have no outliers at 3.
  'synthetic': {'u': 1.5},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'bnp', _OTHERS)
