"""Blind (Bagdasaryan & Shmatikov, USENIX Security 2021): a loss of two tasks.

Paper:    CIFAR-10, PreAct-ResNet18 by BackdoorBench: C-Acc 0.8332, ASR 0.9994,
          R-Acc 0.0006 (published)
Command:  python -m launch.attack --config=configs/attacks/blind.py
Expected: full setting not yet measured here
Quick:    --config=configs/attacks/blind.py:quick (toy world, seconds)
MGDA:     --config.method.balance=mgda --config.method.target_label=8
          --config.train.batch_size=64 --config.train.lr=0.1
          --config.train.epochs=200
"""

from configs import common

# Ours: so little data make up fewer batches than the published 1000 in all.
_HISTORY = {'digits16': 50, 'digits32': 50, 'synthetic': 20}


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  config = common.attack(arg, 'blind')
  config.method.history = _HISTORY.get(config.data.name, config.method.history)
  return config
