"""NAD: neural attention distillation from a fine-tuned copy.

Paper:    Li et al., ICLR 2021; BackdoorBench's setting (Wu et al., NeurIPS
          2022)
Command:  python -m launch.defend --config=configs/defenses/nad.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: not yet measured here
Quick:    --config=configs/defenses/nad.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  'tiny_imagenet': {'batch_size': 128},
  'tiny_imagenet10': {'batch_size': 128},
  # Ours: small sets give few steps, so more passes at the published rate; at
  # five times that rate the network was lost, clean accuracy and all.
  'digits16': {'batch_size': 32, 'epochs': 20, 'teacher_epochs': 20},
  'digits32': {'batch_size': 32, 'epochs': 20, 'teacher_epochs': 20},
  # Ours too, chosen on BadNets: 40 steps, at which FT keeps the backdoor.
  'synthetic': {
    'lr': 0.25,
    'schedule': 'cosine_epoch',
    'batch_size': 32,
    'epochs': 20,
    'teacher_epochs': 20,
  },
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'nad', _OTHERS, length='epochs')
