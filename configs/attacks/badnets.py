"""BadNets (Gu et al., IEEE Access 2019): a white 3×3 patch, 10 % poisoning.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.9132, ASR 0.9503,
          R-Acc 0.0467 (published)
Command:  python -m launch.attack --config=configs/attacks/badnets.py
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/attacks/badnets.py:quick (toy world, seconds)
All-to-all: --config.method.label_mode=all2all
"""

from bdjax import attacks
from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  options = common.parse_arg(arg, **common.WORLD, numpy_legacy=False)
  config = common.world(options)
  config.name = 'badnets'
  config.train = common.recipe(options)
  config.method = common.fields(
    attacks.BadNetsHParams,
    index_rng='numpy_legacy' if options.numpy_legacy else 'jax',
  )
  config.assets = {'patch_image': ''}
  return config
