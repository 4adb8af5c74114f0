"""NC: trigger inversion for every class, unlearning of what stands out.

Paper:    Wang et al., IEEE S&P 2019; settings of BackdoorBench
Command:  python -m launch.defend --config=configs/defenses/nc.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/defenses/nc.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # All classes at once would not fit; the chunk changes no number.
  'cifar100': {'chunk': 25},
  'gtsrb': {'chunk': 22},
  'tiny_imagenet': {'chunk': 20, 'epochs': 200},
  # Ours: few clean images make few steps.
  'digits16': {'batch_size': 32, 'inversion_epochs': 160},
  'digits32': {'batch_size': 32, 'inversion_epochs': 160},
  # Ours too: among four classes no index reaches 2 by a single outlier.
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 20, 'threshold': 1.0},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'nc', _OTHERS, length='epochs')
