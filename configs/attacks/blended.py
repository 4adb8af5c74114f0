"""Blended (Chen et al., arXiv 2017): a picture shines through, 10 % poisoning.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.9347, ASR 0.9992,
          R-Acc 0.0008 (published, with another picture)
Command:  python -m launch.attack --config=configs/attacks/blended.py
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/attacks/blended.py:quick (toy world, seconds)
Own picture: --config.assets.trigger_image=PICTURE.png
"""

from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.attack(arg, 'blended', trigger_image='')
