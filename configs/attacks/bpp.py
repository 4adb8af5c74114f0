"""BppAttack (Wang et al., CVPR 2022): 8 levels per color, 10 % of every batch.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.907, ASR 0.998,
          R-Acc 0.002 (published)
Command:  python -m launch.attack --config=configs/attacks/bpp.py
Expected: full setting not yet measured here
Quick:    --config=configs/attacks/bpp.py:quick (toy world, seconds)
All-to-all: --config.method.label_mode=all2all
"""

from configs import common

# Ours: of 8 levels nothing is learned from so few images (ASR 0 after 20 epochs
# on digits16).
_OTHERS = {
  'digits16': {'squeeze_num': 4},
  'digits32': {'squeeze_num': 4},
  'synthetic': {'squeeze_num': 4, 'poison_ratio': 0.2},
}


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.in_loop_attack(arg, 'bpp', _OTHERS, epochs=30)
