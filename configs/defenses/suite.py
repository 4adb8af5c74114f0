"""Several post-training defenses, or all of them, each with its own settings.

Paper:    the comparison of Wu et al., BackdoorBench, NeurIPS 2022
Command:  python -m launch.defend --parents='attacked/cifar10/*'
            --config=configs/defenses/suite.py:methods=ft+ft_sam
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/defenses/suite.py:quick (toy world, seconds)
Settings of one method: --config.ft_sam.method.rho=4
"""

import importlib

from ml_collections import config_dict

from bdjax import defenses, registry
from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.defend` for several methods."""
  options = common.parse_arg(
    arg, dataset='cifar10', quick=False, clean_ratio=0.05, methods='all'
  )
  names = tuple(defenses.REGISTRY)
  if options.methods != 'all':
    names = tuple(options.methods.split('+'))
  for name in names:
    registry.get(defenses.REGISTRY, name, 'defense')
  config = config_dict.ConfigDict(
    {'seed': 0, 'dataset': options.dataset, 'methods': names}
  )
  passed = f'dataset={options.dataset},clean_ratio={options.clean_ratio}'
  for name in names:
    module = importlib.import_module(f'configs.defenses.{name}')
    config[name] = module.get_config(passed)
  return config
