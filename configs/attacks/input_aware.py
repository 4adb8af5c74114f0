"""Input-aware (Nguyen & Tran, NeurIPS 2020): a trigger of each image's own.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.9067, ASR 0.9826,
          R-Acc 0.0166 (published)
Command:  python -m launch.attack --config=configs/attacks/input_aware.py
Expected: full setting not yet measured here
Quick:    --config=configs/attacks/input_aware.py:quick (toy world, seconds)
All-to-all: --config.method.label_mode=all2all
"""

from configs import common

# Ours: narrow generators save time; a short recipe has fewer epochs to give.
_SMALL = {'mask_epochs': 5, 'widths': (8, 16, 32)}


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  config = common.in_loop_attack(arg, 'input_aware')
  if config.data.name in common.SMALL_WORLDS:
    config.method.update(_SMALL)
  return config
