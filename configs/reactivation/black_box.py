"""Black-box re-activation: the scores of the model, one query at a time.

Paper:    Zhu, Liang, Wu, NeurIPS 2024: L∞ 0.05, one pool of 500, 10,000
          queries, ended at 99 % of the pool
Command:  python -m launch.reactivate --config=configs/reactivation/black_box.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
Quick:    --config=configs/reactivation/black_box.py:quick
          (toy world, seconds)
"""

from configs import common

# Ours: smaller pools, fewer queries.
_DIGITS = {'pool_size': 200, 'num_queries': 2000}
_SMALL = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': {'pool_size': 128, 'num_queries': 300},
}


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  return common.reactivation(arg, 'black_box', _SMALL)
