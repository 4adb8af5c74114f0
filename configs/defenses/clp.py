"""CLP: pruning of channels of large Lipschitz bound, without data.

Paper:    Zheng et al., ECCV 2022; u = 3, Tiny ImageNet u = 5
Command:  python -m launch.defend --config=configs/defenses/clp.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/clp.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  'tiny_imagenet': {'u': 5.0},
  'tiny_imagenet10': {'u': 5.0},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'clp', _OTHERS)
