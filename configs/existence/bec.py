"""BEC: the backdoor existence coefficient of defended models.

Paper:    Zhu, Liang, Wu, NeurIPS 2024: 2,200 pairs, 500 images, p = 10 %
Command:  python -m launch.existence --config=configs/existence/bec.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: published points are relative to their row; ours: README
Quick:    --config=configs/existence/bec.py:quick (toy world, seconds)
"""

from ml_collections import config_dict

from configs import common

# The test sets of digits and the toy world hold fewer triggered images.
_SMALL = {
  'digits16': (300, 200),
  'digits32': (300, 200),
  'synthetic': (120, 80),
}


def get_config(arg: str | None = None):
  """Settings of `launch.existence`."""
  options = common.parse_arg(arg, dataset='cifar10', quick=False)
  num_tac, num_cka = _SMALL.get(options.dataset, (2200, 500))
  return config_dict.ConfigDict(
    {
      'name': 'bec',
      'dataset': options.dataset,
      'seed': 0,
      'p': 0.1,
      'num_tac': num_tac,
      'num_cka': num_cka,
      'debiased': False,
      'exec': common.execution(),
    }
  )
