"""I-BAU: unlearning by an implicit hypergradient.

Paper:    Zeng et al., ICLR 2022; settings of BackdoorBench
Command:  python -m launch.defend --config=configs/defenses/i_bau.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/defenses/i_bau.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # Ours: few clean images make few steps, and smaller nets take larger ones.
  'digits16': {'batch_size': 32, 'rounds': 10, 'lr': 1e-3},
  'digits32': {'batch_size': 32, 'rounds': 10, 'lr': 1e-3},
  # Ours too: among 32 images the published 1 % would be a single one.
  'synthetic': {
    'batch_size': 32,
    'rounds': 20,
    'lr': 0.01,
    'inner_lr': 100.0,
    'patch_ratio': 0.5,
  },
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'i_bau', _OTHERS, length='rounds')
