"""FST: feature shift tuning; baselines by --config.method.mode=lp and others.

Paper:    Min et al., NeurIPS 2023; CIFAR-10 10 epochs, α = 0.2, 2 % clean data
          (here 5 %: clean_ratio=0.02 after the colon)
Command:  python -m launch.defend --config=configs/defenses/fst.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: not yet measured here
Quick:    --config=configs/defenses/fst.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # The weight falls as classes grow in number.
  'gtsrb': {'alpha': 0.1},
  'cifar100': {'alpha': 0.001},
  'tiny_imagenet': {'alpha': 0.001},
  'tiny_imagenet10': {'alpha': 0.001},
  # Ours, not tuned: small sets give few steps, which take a larger rate.
  'digits16': {'lr': 0.05, 'batch_size': 32, 'epochs': 40},
  'digits32': {'lr': 0.05, 'batch_size': 32, 'epochs': 40},
  # Ours too: FT-SAM's rate, so that the two compare.
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 20},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'fst', _OTHERS, length='epochs')
