"""WaNet (Nguyen & Tran, ICLR 2021): a smooth warp, 10 % of every batch.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.9125, ASR 0.8973,
          R-Acc 0.0976 (published)
Command:  python -m launch.attack --config=configs/attacks/wanet.py
Expected: full setting not yet measured here
Quick:    --config=configs/attacks/wanet.py:quick (toy world, seconds)
All-to-all: --config.method.label_mode=all2all
"""

from configs import common

# Ours: few images need a warp of about a pixel, and time to tell it from noise;
# after 20 epochs on digits16 covers are sent to the target like poison. The toy
# world's net does not tell them apart at all.
_OTHERS = {
  'digits16': {'strength': 2.0},
  'digits32': {'strength': 2.0},
  'synthetic': {'strength': 4.0, 'poison_ratio': 0.2, 'cross_ratio': 0.5},
}


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.in_loop_attack(arg, 'wanet', _OTHERS, epochs=60)
