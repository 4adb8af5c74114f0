"""SAU: unlearning of adversarial images that two models share.

Paper:    Wei et al., NeurIPS 2023; CIFAR-10 and GTSRB 100 rounds, Tiny
          ImageNet 20
Command:  python -m launch.defend --config=configs/defenses/sau.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: not yet measured here
Quick:    --config=configs/defenses/sau.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  'tiny_imagenet': {'epochs': 20},
  'tiny_imagenet10': {'epochs': 20},
  # Ours, not tuned: small sets give few steps, which take a larger rate.
  'digits16': {'lr': 1e-3, 'batch_size': 32, 'epochs': 40},
  'digits32': {'lr': 1e-3, 'batch_size': 32, 'epochs': 40},
  # Ours too, chosen on BadNets: 40 steps.
  'synthetic': {'lr': 1e-2, 'batch_size': 32, 'epochs': 20},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'sau', _OTHERS, length='epochs')
