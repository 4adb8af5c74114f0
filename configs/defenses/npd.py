"""NPD: a purifying layer in a frozen network.

Paper:    Zhu et al., NeurIPS 2023; l2 triggers of 3 on CIFAR-10, 5 on GTSRB
Command:  python -m launch.defend --config=configs/defenses/npd.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/defenses/npd.py:quick (toy world, seconds)
"""

from configs import common

_TINY_IMAGENET = {
  'warm_epochs': 0,
  'train_norm': True,
  'eps': 6.0,
  'recover_weight': 1.0,
  'boost_weight': 0.1,
  'target_weight': 0.1,
}
_OTHERS = {
  # The published file has no radius for CIFAR-100.
  'cifar100': {'epochs': 100, 'batch_size': 256},
  'gtsrb': {
    'eps': 5.0,
    'recover_weight': 0.5,
    'boost_weight': 0.5,
    'target_weight': 0.5,
  },
  'tiny_imagenet': _TINY_IMAGENET,
  'tiny_imagenet10': _TINY_IMAGENET,
  # Ours: the radius goes with the number of pixels, the batch with the set.
  'digits16': {'eps': 1.5, 'batch_size': 32},
  'digits32': {'eps': 3.0, 'batch_size': 32},
  'synthetic': {'eps': 1.0, 'batch_size': 32, 'epochs': 200},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(
    arg, 'npd', _OTHERS, length='epochs', sampler='class_balanced'
  )
