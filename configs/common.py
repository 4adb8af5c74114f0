"""What all configs share: the argument after the colon, and their skeleton.

`--config=configs/defenses/ft_sam.py:dataset=gtsrb,quick` hands 'dataset=gtsrb,
quick' to the file's `get_config`. Everything a config holds can be changed by
a dotted flag, such as `--config.method.rho=4`; None stands for the default of
the paper or of the data set and is resolved before a run starts.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from bdjax import attacks, checks, defenses, registry, training
from bdjax import reactivation as reactivations

QUICK = dict(dataset='synthetic', arch='tiny')


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
  """Parses 'name=value,flag' strictly.

  Args:
    arg: text after the colon; None or '' for the defaults.
    **defaults: known names and their defaults, whose types decide the values';
      None takes an integer. A bare name sets a bool.

  Returns:
    The options; with `quick`, `dataset` and `arch` become the toy world's
    unless they are given.

  Raises:
    UnknownName: for an unknown name, with the nearest one.
    ValueError: for a value of the wrong type.
  """
  options, given = dict(defaults), set()
  for part in filter(None, (arg or '').split(',')):
    name, _, text = part.partition('=')
    if name not in defaults:
      raise registry.UnknownName(
        f"This config takes no '{name}'. {checks.suggest(name, defaults)}"
      )
    options[name] = _value(name, text or 'true', defaults[name])
    given.add(name)
  if options.get('quick'):
    options |= {k: v for k, v in QUICK.items() if k in options.keys() - given}
  return types.SimpleNamespace(**options)


def _value(name: str, text: str, default: Any) -> Any:
  if isinstance(default, bool):
    checks.one_of(('true', 'false'), **{name: text.lower()})
    return text.lower() == 'true'
  kind = int if default is None else type(default)
  try:
    return kind(text)
  except ValueError:
    raise ValueError(
      f'`{name}={text}` of this config must be of type {kind.__name__}.'
    ) from None


def fields(cls: type, **values: Any) -> config_dict.ConfigDict:
  """The fields of a dataclass of hyper-parameters as a config.

  Args:
    cls: made by `types.hparams`.
    **values: values other than the defaults.

  Returns:
    A ConfigDict with one typed entry per field.
  """
  made: dict[str, Any] = {}
  unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
  if unknown:
    raise registry.UnknownName(f'{cls.__name__} has no field {unknown}.')
  for field in dataclasses.fields(cls):
    value = values.get(field.name, field.default)
    if value is None:
      kind = {'float | None': float, 'str | None': str}.get(
        str(field.type), int
      )
      value = config_dict.placeholder(kind)
    made[field.name] = value
  return config_dict.ConfigDict(made)


def world(options: types.SimpleNamespace) -> config_dict.ConfigDict:
  """Data set, architecture and seed.

  Args:
    options: with `dataset`, `arch`, `width`, `num_train`, `num_test`.

  Returns:
    A ConfigDict with `seed`, `data` and `arch`.
  """
  optional = lambda value: (
    config_dict.placeholder(int) if value is None else value
  )
  return config_dict.ConfigDict(
    {
      'seed': 0,
      'data': {
        'name': options.dataset,
        'num_train': optional(options.num_train),
        'num_test': optional(options.num_test),
      },
      'arch': {
        'name': options.arch,
        'width': optional(options.width),
        'dtype': config_dict.placeholder(str),  # 'bfloat16' on accelerators
      },
    }
  )


WORLD = dict(
  dataset='cifar10',
  arch='preactresnet18',
  width=None,
  num_train=None,
  num_test=None,
  epochs=None,
  quick=False,
)

SMALL_WORLDS = ('digits16', 'digits32', 'synthetic')

# Epochs of the benchmark's recipe; the digits' are ours.
_EPOCHS = {
  'gtsrb': 50,
  'tiny_imagenet': 200,
  'tiny_imagenet10': 200,
  'digits16': 15,
  'digits32': 15,
  'synthetic': 20,
}
_T_MAX = {'gtsrb': 100}


# Poisoning ratios of clean-label attacks where the default is more than the
# target class holds; the digits' is ours (a class is a tenth of them).
CLEAN_LABEL_RATIOS = {
  'cifar100': 0.01,
  'gtsrb': 0.005,
  'tiny_imagenet': 0.005,
  'digits16': 0.05,
  'digits32': 0.05,
}


def recipe(options: types.SimpleNamespace) -> config_dict.ConfigDict:
  """The training recipe of a data set (BackdoorBench's where it has one).

  Digits and the toy world are small: they take a larger learning rate and a
  smaller batch. Tiny ImageNet takes a cosine over all epochs in place of the
  benchmark's reduction on plateaus.

  Args:
    options: with `dataset`, `epochs`.

  Returns:
    A ConfigDict of `training.RecipeHParams`.
  """
  values: dict[str, Any] = {'epochs': _EPOCHS.get(options.dataset, 100)}
  if options.dataset in _T_MAX:
    values['t_max'] = _T_MAX[options.dataset]
  if options.dataset in ('digits16', 'digits32'):
    values |= {'batch_size': 64, 'lr': 0.05}
  if options.dataset == 'synthetic':
    values |= {'batch_size': 32, 'lr': 0.1}
  if options.epochs is not None:
    values['epochs'] = options.epochs
  return fields(training.RecipeHParams, **values)


def execution() -> config_dict.ConfigDict:
  """How a stack is run (`types.Exec`); no part of a run's identity."""
  return config_dict.ConfigDict(
    {
      'mode': 'map',
      'chunk': config_dict.placeholder(int),
      'memory_budget': config_dict.placeholder(int),
      'precision': 'default',
    }
  )


def attack(
  arg: str | None, name: str, *, clean_model: bool = False, **assets: str
) -> config_dict.ConfigDict:
  """The settings of an attack.

  Args:
    arg: text after the colon.
    name: registry key.
    clean_model: whether its assets are crafted with a clean model; `clean`
      then says how that is trained, on the same data and network, with the
      run's seed unless it has one of its own.
    **assets: files it can be given; '' for what it makes itself.

  Returns:
    A ConfigDict for `launch.attack`.
  """
  hparams = attacks.REGISTRY[name].hparams
  # Only attacks on a fixed subset draw indices.
  draws = 'index_rng' in {f.name for f in dataclasses.fields(hparams)}
  options = parse_arg(
    arg, **WORLD, **({'numpy_legacy': False} if draws else {})
  )
  values = {}
  if draws:
    values['index_rng'] = 'numpy_legacy' if options.numpy_legacy else 'jax'
  config = world(options)
  config.name = name
  config.train = recipe(options)
  config.method = fields(hparams, **values)
  config.assets = assets
  if clean_model:
    seed = config_dict.placeholder(int)
    config.clean = {'seed': seed, 'train': recipe(options)}
  return config


def in_loop_attack(
  arg: str | None,
  name: str,
  others: Mapping[str, Mapping[str, Any]] | None = None,
  *,
  epochs: int | None = None,
) -> config_dict.ConfigDict:
  """The settings of an attack that poisons batches while it trains.

  The benchmark trains these at a constant rate, a tenth of it after every 100
  epochs. Digits and the toy world keep their cosine.

  Args:
    arg: text after the colon.
    name: registry key.
    others: per data set the values that differ from the defaults.
    epochs: those of digits, unless `arg` says otherwise; None = the recipe's.

  Returns:
    A ConfigDict for `launch.attack`.
  """
  options, config = parse_arg(arg, **WORLD), attack(arg, name)
  dataset = options.dataset
  if dataset not in SMALL_WORLDS:
    config.train.update(schedule='step_epoch', t_max=100)
  is_digits = dataset in ('digits16', 'digits32')
  if is_digits and options.epochs is None and epochs is not None:
    config.train.epochs = epochs
  config.method.update((others or {}).get(dataset, {}))
  return config


# Trigger inversion by a generator; ours. The rate is one at which pretraining
# ends as an identity (its metric `agreement` nears 1); narrow U-Nets save time.
_SMALL = {'generator_lr': 0.01, 'batch_size': 32, 'rounds': 1, 'width': 8}
INVERSION = {
  'digits16': _SMALL,
  'digits32': _SMALL,
  'synthetic': {
    **_SMALL,
    'pretrain_epochs': 20,
    'unlearn_epochs': 20,
    'levels': 1,
  },
}


def defense(
  arg: str | None,
  name: str,
  others: Mapping[str, Mapping[str, Any]],
  *,
  length: str | None = None,
  clean_ratio: float = 0.05,
  sampler: str = 'random',
) -> config_dict.ConfigDict:
  """The settings of a post-training defense.

  Args:
    arg: text after the colon.
    name: registry key.
    others: per data set the values that differ from the defaults.
    length: hyper-parameter, 'epochs' or the like, that `arg` may set too.
    clean_ratio: clean images / training set, unless `arg` says otherwise.
    sampler: how they are drawn, 'random' | 'class_balanced'.

  Returns:
    A ConfigDict for `launch.defend`.
  """
  lengths = {} if length is None else {length: None}
  options = parse_arg(
    arg, dataset='cifar10', quick=False, clean_ratio=clean_ratio, **lengths
  )
  values = dict(others.get(options.dataset, {}))
  for field in lengths:
    if getattr(options, field) is not None:
      values[field] = getattr(options, field)
  return config_dict.ConfigDict(
    {
      'name': name,
      'dataset': options.dataset,
      'seed': 0,
      'clean_ratio': options.clean_ratio,
      'sampler': sampler,
      'exec': execution(),
      'method': fields(defenses.REGISTRY[name].hparams, **values),
    }
  )


def reactivation(
  arg: str | None, name: str, others: Mapping[str, Mapping[str, Any]]
) -> config_dict.ConfigDict:
  """The settings of a re-activation.

  Args:
    arg: text after the colon.
    name: registry key.
    others: per data set the values that differ from the defaults.

  Returns:
    A ConfigDict for `launch.reactivate`.
  """
  options = parse_arg(arg, dataset='cifar10', quick=False)
  return config_dict.ConfigDict(
    {
      'name': name,
      'dataset': options.dataset,
      'seed': 0,
      'method': fields(
        reactivations.REGISTRY[name].hparams,
        **others.get(options.dataset, {}),
      ),
      'exec': execution(),
    }
  )
