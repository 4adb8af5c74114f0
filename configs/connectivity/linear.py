"""The straight path from a backdoored model to its defended version.

Paper:    Min et al., NeurIPS 2024; 21 positions; statistics from 20 × 250
          clean images; digits and the toy world take 11 positions, 4 × 100
Command:  python -m launch.connect --config=configs/connectivity/linear.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
Quick:    --config=configs/connectivity/linear.py:quick (toy world, seconds)
Pairs:    --config.ends=defended:retuned (after the retuning attack) or
          defended:clean; the first is t = 0, the second t = 1
"""

from ml_collections import config_dict

from configs import common

_DIGITS = (11, 4, 100)
_SMALL = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': (11, 4, 64),
}


def get_config(arg: str | None = None):
  """Settings of `launch.connect`."""
  options = common.parse_arg(arg, dataset='cifar10', quick=False)
  points, batches, size = _SMALL.get(options.dataset, (21, 20, 250))
  return config_dict.ConfigDict(
    {
      'name': 'linear',
      'dataset': options.dataset,
      'seed': 0,
      'ends': 'attacked:defended',
      'num_points': points,
      'bn_batches': batches,
      'bn_batch_size': size,
      'exec': common.execution(),
    }
  )
