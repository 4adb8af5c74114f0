"""One hyper-parameter of a re-activation varied, all else being equal.

Paper:    Zhu, Liang, Wu, NeurIPS 2024: bound, pool, queries, modes of transfer;
          the values are ours where it does not give them
Command:  python -m launch.reactivate
            --config=configs/reactivation/ablation.py:of=pool_size
            --parents='defended/cifar10/preactresnet18/*'
Expected: not yet measured
Quick:    --config=configs/reactivation/ablation.py:quick
          (toy world, seconds)
Options:  of=eps (default) | eps_l2 | pool_size | num_queries | mode |
          num_surrogates
"""

from bdjax import checks
from configs import common
from configs.reactivation import black_box, transfer, white_box

_POOLS = (10, 50, 100, 500, 1000)
_QUERIES = (1000, 3000, 5000, 7000, 10_000)
_OF = {
  'eps': (white_box, 'eps', (0.01, 0.02, 0.03, 0.05, 0.1)),
  'eps_l2': (white_box, 'eps', (0.5, 1.0, 2.0, 3.0)),
  'pool_size': (white_box, 'pool_size', _POOLS),
  'num_queries': (black_box, 'num_queries', _QUERIES),
  'mode': (transfer, 'mode', ('avg', 'step', 'mom')),
  'num_surrogates': (transfer, 'num_surrogates', (1, 2, 3)),
}
# The small sets hold no more images, and need fewer queries.
_SMALL = {
  'pool_size': (10, 30, 100, 320),
  'num_queries': (100, 300, 1000, 3000),
}
_TOY = {'pool_size': (10, 30, 100), 'num_queries': (30, 100, 300)}
_OF_DATA = {'digits16': _SMALL, 'digits32': _SMALL, 'synthetic': _TOY}


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  options = common.parse_arg(arg, dataset='cifar10', quick=False, of='eps')
  checks.one_of(tuple(_OF), of=options.of)
  module, field, values = _OF[options.of]
  config = module.get_config(f'dataset={options.dataset}')
  if options.of == 'eps_l2':
    config.method.norm = 'l2'
  values = _OF_DATA.get(options.dataset, {}).get(options.of, values)
  config.variants = {'field': field, 'values': values}
  return config
