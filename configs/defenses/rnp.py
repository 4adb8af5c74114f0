"""RNP: unlearning clean images, recovering them by masks, pruning the rest.

Paper:    Li et al., ICML 2023; settings of BackdoorBench, 1 % clean data
Command:  python -m launch.defend --config=configs/defenses/rnp.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/rnp.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # Ours: small sets take small batches.
  'digits16': {'batch_size': 32},
  'digits32': {'batch_size': 32},
  'synthetic': {'batch_size': 32},
}
# Ours: 1 % of a small set is too little to select on.
_RATIOS = {'digits16': 0.05, 'digits32': 0.05, 'synthetic': 0.05}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`; clean_ratio=0 takes the data set's own."""
  config = common.defense(arg, 'rnp', _OTHERS, clean_ratio=0.0)
  if not config.clean_ratio:
    config.clean_ratio = _RATIOS.get(config.dataset, 0.01)
  return config
