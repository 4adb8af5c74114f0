"""EP: pruning of channels of low entropy on the poisoned training set.

Paper:    Zheng et al., NeurIPS 2022; u = 3, Tiny ImageNet u = 4
Command:  python -m launch.defend --config=configs/defenses/ep.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/ep.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  'tiny_imagenet': {'u': 4.0},
  'tiny_imagenet10': {'u': 4.0},
  # Ours, chosen on BadNets: narrow layers have no outliers at 3.
  'synthetic': {'u': 1.0},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'ep', _OTHERS)
