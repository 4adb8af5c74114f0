"""Blended (Chen et al., arXiv 2017): a picture shines through, 10 % poisoning.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.9347, ASR 0.9992,
          R-Acc 0.0008 (published, with another picture)
Command:  python -m launch.attack --config=configs/attacks/blended.py
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/attacks/blended.py:quick (toy world, seconds)
Own picture: --config.assets.trigger_image=PICTURE.png
"""

from bdjax import attacks
from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  options = common.parse_arg(arg, **common.WORLD, numpy_legacy=False)
  config = common.world(options)
  config.name = 'blended'
  config.train = common.recipe(options)
  config.method = common.fields(
    attacks.BlendedHParams,
    index_rng='numpy_legacy' if options.numpy_legacy else 'jax',
  )
  config.assets = {'trigger_image': ''}
  return config
