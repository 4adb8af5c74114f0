"""BEC at several shares p of backdoor neurons, an ablation.

Paper:    Zhu, Liang, Wu, NeurIPS 2024: p of 5, 10 (the headline) and 20 %
Command:  python -m launch.existence --config=configs/existence/shares.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: not yet measured
Quick:    --config=configs/existence/shares.py:quick (toy world, seconds)
"""

from configs.existence import bec


def get_config(arg: str | None = None):
  """Settings of `launch.existence`."""
  config = bec.get_config(arg)
  config.variants = {'field': 'p', 'values': (0.05, 0.1, 0.2)}
  return config
