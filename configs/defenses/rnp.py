"""RNP: unlearning clean images, recovering them by masks, pruning the rest.

Paper:    Li et al., ICML 2023; settings of BackdoorBench, 1 % clean data
Command:  python -m launch.defend --config=configs/defenses/rnp.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/rnp.py:quick (toy world, seconds)
"""

from bdjax import defenses
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
  options = common.parse_arg(
    arg, dataset='cifar10', quick=False, clean_ratio=0.0
  )
  if not options.clean_ratio:
    options.clean_ratio = _RATIOS.get(options.dataset, 0.01)
  config = common.defense('rnp', options)
  values = _OTHERS.get(options.dataset, {})
  config.method = common.fields(defenses.RnpHParams, **values)
  return config
