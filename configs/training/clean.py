"""A clean model: the zero of BEC and the control of re-activation.

Paper:    recipe of BackdoorBench (Wu et al., NeurIPS 2022), CIFAR-10
Command:  python -m launch.train --config=configs/training/clean.py
Expected: C-Acc about 0.938 on CIFAR-10 with PreAct-ResNet18 after 100 epochs
          (published); not yet measured here
Quick:    --config=configs/training/clean.py:quick (toy world, seconds)
"""

from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.train`."""
  options = common.parse_arg(arg, **common.WORLD)
  config = common.world(options)
  config.train = common.recipe(options)
  return config
