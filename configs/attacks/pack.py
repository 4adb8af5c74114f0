"""Attacks × poisoning ratios on one data set, trained as one program.

Paper:    the grids of Wu et al., BackdoorBench, NeurIPS 2022
Command:  python -m launch.pack
            --config=configs/attacks/pack.py:attacks=badnets+sig,ratios=0.01+0.1
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/attacks/pack.py:quick (toy world, seconds)
Settings of one attack: --config.blended.method.alpha=0.1
"""

import importlib

from bdjax import attacks, registry
from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.pack`; those of each attack are `launch.attack`'s."""
  options = common.parse_arg(
    arg, **common.WORLD, attacks='badnets+blended', ratios='0.01+0.05+0.1'
  )
  names = tuple(options.attacks.split('+'))
  for name in names:
    registry.get(attacks.REGISTRY, name, 'attack')
  config = common.world(options)
  config.update(
    {
      'train': common.recipe(options),
      'attacks': names,
      'ratios': _ratios(options.ratios),
      'exec': common.execution(),
    }
  )
  for name in names:
    module = importlib.import_module(f'configs.attacks.{name}')
    config[name] = module.get_config(f'dataset={options.dataset}')
  return config


def _ratios(text: str) -> tuple[float, ...]:
  try:
    return tuple(map(float, text.split('+')))
  except ValueError:
    raise ValueError(
      f"`ratios={text}` of this config are no numbers joined by '+'; write "
      'ratios=0.01+0.1.'
    ) from None
