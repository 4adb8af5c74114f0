"""FT-SAM: fine-tuning with adaptive sharpness-aware minimization.

Paper:    Zhu et al., ICCV 2023; CIFAR-10 ρ = 2, GTSRB and Tiny ImageNet ρ = 8
Command:  python -m launch.defend --config=configs/defenses/ft_sam.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/defenses/ft_sam.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  'gtsrb': {'rho': 8.0, 'label_smoothing': 0.0, 'epochs': 50},
  'tiny_imagenet': {'rho': 8.0, 'label_smoothing': 0.0},
  'tiny_imagenet10': {'rho': 8.0, 'label_smoothing': 0.0},
  # Ours, chosen on BadNets: small nets and few steps take a larger radius.
  'digits16': {'rho': 8.0, 'lr': 0.015, 'batch_size': 32, 'epochs': 60},
  'digits32': {'rho': 8.0, 'lr': 0.015, 'batch_size': 32, 'epochs': 60},
  # Ours too, chosen on BadNets: a large rate, as there are 80 steps.
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 40},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(
    arg, 'ft_sam', _OTHERS, length='epochs', sampler='class_balanced'
  )
