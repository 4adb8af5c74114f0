"""White-box re-activation with its mandatory controls.

Paper:    Zhu, Liang, Wu, NeurIPS 2024: L∞ 0.05, pool 1,000, 50 × 5 steps
Command:  python -m launch.reactivate --config=configs/reactivation/white_box.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
Quick:    --config=configs/reactivation/white_box.py:quick
          (toy world, seconds)
Grid:     --config.grid=True runs all six cells of {triggered, clean} inputs ×
          {attacked, defended, clean} models
"""

from configs import common

# Ours: a tenth of the steps at ten times the rate, converged on both.
_DIGITS = {'pool_size': 320, 'batch_size': 64, 'outer_epochs': 3, 'lr': 0.5}
_SMALL = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': {'pool_size': 128, 'batch_size': 64, 'outer_epochs': 20},
}


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  config = common.reactivation(arg, 'white_box', _SMALL)
  config.grid = False
  return config
