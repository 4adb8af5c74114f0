"""Is the backdoor gone? Attacks × defenses under every instrument.

Paper:    Zhu, Liang, Wu and Min et al., both NeurIPS 2024: existence against
          ASR, re-activation by white box, queries and transfer with controls,
          retuning, QRA, linear paths, the ablation of PAM's ρ
Command:  python -m launch.study
            --config=configs/studies/dormant.py:dataset=digits16,width=16
Expected: README
Quick:    --config=configs/studies/dormant.py:quick,methods=ft+ft_sam
          (toy world, a minute)
Options:  attacks=badnets+blended, methods=ft+nad (default all), eps=0.02,
          num_train=…, epochs=…; on digits methods and instruments get less
          than their own configs give them
"""

import importlib

from ml_collections import config_dict

from configs import common
from configs.connectivity import linear
from configs.defenses import pam, suite
from configs.existence import bec
from configs.reactivation import (
  black_box,
  qra,
  retuning_attack,
  transfer,
  white_box,
)
from configs.training import clean

_RHO = (0.3, 0.7, 0.9)  # beside the default, 0.5
_FEW_RHO = (0.9,)
_SURROGATES = ('ft', 'ft_sam', 'nad', 'i_bau')
# Ours: dozens of models in minutes, so that methods get a third of what their
# own configs give them.
_DEFENSES = {
  'nc': {'inversion_epochs': 25},
  'sau': {'epochs': 10},
  'bti_dbf': {'levels': 2},
  'pam': {'levels': 2},
  'anp': {'num_steps': 120},
}
_INSTRUMENTS = {
  'white_box': {'pool_size': 128, 'outer_epochs': 2},
  'black_box': {'pool_size': 64, 'num_queries': 60},
  'transfer': {'pool_size': 128},
  'qra': {'num_clean': 96, 'num_poisoned': 96, 'batch_size': 48, 'epochs': 4},
}
_EPOCHS = {'digits16': 12, 'digits32': 12}  # of the attacked and clean models
_SHORT = {
  'digits16': _DEFENSES | _INSTRUMENTS,
  'digits32': _DEFENSES | _INSTRUMENTS,
  'synthetic': {'black_box': {'num_queries': 200}},
}


def get_config(arg: str | None = None):
  """Settings of `launch.study`."""
  options = common.parse_arg(
    arg,
    **common.WORLD,
    attacks='badnets+blended+ftrojan',
    methods='all',
    eps=0.05,
  )
  data = f'dataset={options.dataset}'
  net = f'{data},arch={options.arch}'
  if options.epochs is None:
    options.epochs = _EPOCHS.get(options.dataset)
  for name in ('width', 'num_train', 'num_test', 'epochs'):
    if getattr(options, name) is not None:
      net += f',{name}={getattr(options, name)}'
  attack = lambda name: importlib.import_module(f'configs.attacks.{name}')
  names = options.attacks.split('+')
  config = config_dict.ConfigDict(
    {
      'seed': 0,
      'clean': clean.get_config(net),
      'attacks': {name: attack(name).get_config(net) for name in names},
      'defenses': {
        'suite': suite.get_config(f'{data},methods={options.methods}')
      },
      'existence': bec.get_config(data),
      'reactivations': _reactivations(data, options),
      'paths': {'linear': linear.get_config(data)},
    }
  )
  for part in (config.defenses.suite, config.reactivations):
    for name, values in _SHORT.get(options.dataset, {}).items():
      if name in part:
        part[name].method.update(values)
  if 'pam' in config.defenses.suite.methods:
    rho = pam.get_config(data)
    rho.method.update(_SHORT.get(options.dataset, {}).get('pam', {}))
    values = _FEW_RHO if options.dataset in _SHORT else _RHO
    rho.variants = {'field': 'rho', 'values': values}
    rho.attack = 'blended' if 'blended' in names else names[0]
    config.ablations = {'pam_rho': rho}
  return config


def _reactivations(data: str, options) -> dict:
  """The attacks on defended models."""
  found = {
    'white_box': white_box.get_config(data),
    'black_box': black_box.get_config(data),
    'transfer': transfer.get_config(data),
  }
  for config in found.values():
    config.method.eps = options.eps
  known = [n for n in _SURROGATES if _is_used(n, options.methods)]
  found['transfer'].surrogates = tuple(known)
  wanted = found['transfer'].method.num_surrogates
  found['transfer'].method.num_surrogates = min(wanted, len(known) - 1)
  if len(known) < 2:
    del found['transfer']
  return found | {
    'retuning_attack': retuning_attack.get_config(data),
    'qra': qra.get_config(data),
  }


def _is_used(name: str, methods: str) -> bool:
  return methods == 'all' or name in methods.split('+')
