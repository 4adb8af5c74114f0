"""BadNets (Gu et al., IEEE Access 2019): a white 3×3 patch, 10 % poisoning.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.9132, ASR 0.9503,
          R-Acc 0.0467 (published)
Command:  python -m launch.attack --config=configs/attacks/badnets.py
Expected: full setting not yet measured here; small settings: README
Quick:    --config=configs/attacks/badnets.py:quick (toy world, seconds)
All-to-all: --config.method.label_mode=all2all
"""

from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.attack(arg, 'badnets', patch_image='')
