"""The straight path from a backdoored model to its defended version.

Paper:    Min et al., NeurIPS 2024; 21 positions; statistics from 20 × 250
          clean images
Command:  python -m launch.connect --config=configs/connectivity/linear.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
"""

from ml_collections import config_dict

from configs import common

_SMALL = {
  'digits16': (10, 100),
  'digits32': (10, 100),
  'synthetic': (4, 64),
}


def get_config(arg: str | None = None):
  """Settings of `launch.connect`."""
  options = common.parse_arg(arg, dataset='cifar10', quick=False)
  num_batches, batch_size = _SMALL.get(options.dataset, (20, 250))
  return config_dict.ConfigDict(
    {
      'name': 'linear',
      'dataset': options.dataset,
      'seed': 0,
      'num_points': 21,
      'bn_batches': num_batches,
      'bn_batch_size': batch_size,
      'exec': common.execution(),
    }
  )
