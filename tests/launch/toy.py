"""Launchers on the toy world, in this process, each made once per test run."""

import contextlib
import functools
import importlib
import io
import pathlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import config_flags

from bdjax import zoo
from configs.attacks import badnets
from configs.defenses import ft
from configs.training import clean
from launch import attack, cli, defend, train

HOME = pathlib.Path(__file__).resolve().parents[2]

# Some images and epochs less than the quick configs, so that a model is neither
# perfect nor perfectly backdoored and equal numbers mean something.
ATTACK = {'data.num_train': 320, 'train.epochs': 8}
DEFENSE = {'clean_ratio': 0.2, 'method.epochs': 6, 'method.lr': 0.02}


@functools.cache
def _room() -> tempfile.TemporaryDirectory:
  return tempfile.TemporaryDirectory(prefix='bdjax-launch-')


def folder(name: str) -> pathlib.Path:
  """A folder that is gone when the tests are."""
  return pathlib.Path(_room().name) / name


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
  """Keeps compiled programs, which launchers make anew for every run."""
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  )
  before = {name: getattr(jax.config, name) for name in names}
  values = (str(folder('xla')), 0.0, -1)
  for name, value in zip(names, values, strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


def quiet(fn: Callable, *args) -> tuple[object, str]:
  """Calls fn; returns its result and what it printed."""
  with contextlib.redirect_stdout(io.StringIO()) as out:
    return fn(*args), out.getvalue()


def set_all(config, values):
  """The config with dotted names set."""
  for name, value in values.items():
    config.update_from_flattened_dict({name: value})
  return config


def attack_config(seed: int = 0, **values):
  """A BadNets run of some seconds."""
  config = set_all(badnets.get_config('quick'), ATTACK | values)
  config.seed = seed
  return config


def clean_config(**values):
  """The clean model that goes with `attack_config`."""
  return set_all(clean.get_config('quick'), ATTACK | values)


def ft_config(mode: str = 'map', **values):
  """A short fine-tuning."""
  config = set_all(ft.get_config('quick'), DEFENSE | values)
  config.exec.mode = mode
  return config


@functools.cache
def attacked(seed: int = 0) -> zoo.Artefact:
  """A backdoored toy model, in a store of its own together with its seeds."""
  context = cli.Context(folder('attacked'))
  with compiled_once():
    return quiet(attack.main, attack_config(seed), context)[0]


@functools.cache
def trained() -> zoo.Artefact:
  """A clean toy model in the same store."""
  with compiled_once():
    context = cli.Context(folder('attacked'))
    return quiet(train.main, clean_config(), context)[0]


@functools.cache
def defended(seed: int = 0) -> zoo.Artefact:
  """The backdoored model of that seed, fine-tuned alone."""
  parent = attacked(seed)
  store = copy_of(parent, f'defended-{seed}')
  with compiled_once():
    made, _ = quiet(defend.main, ft_config(), cli.Context(store), parent.name)
  return made[0]


def copy_of(artefact: zoo.Artefact, name: str) -> pathlib.Path:
  """A store that holds a copy of an artefact, made if it is not there."""
  store = folder(name)
  shutil.copytree(artefact.path, store / artefact.name, dirs_exist_ok=True)
  return store


def parse(file: str, *overrides: str):
  """The config that a command line with these flags gets."""
  values = flags.FlagValues()
  argv = ['launch', f'--config={HOME / file}', *overrides]
  config_flags.DEFINE_config_file('config', flag_values=values)
  # Dotted flags are looked for in the command line itself.
  with mock.patch.object(sys, 'argv', argv), warnings.catch_warnings():
    # ml_collections loads the file in a way that Python is about to drop.
    warnings.filterwarnings('ignore', r'the load_module\(\) method')
    values(argv)
    return values.config


def config_modules() -> list[str]:
  """Names of all modules below configs/ that have a `get_config`."""
  found = sorted((HOME / 'configs').glob('**/*.py'))
  names = [
    '.'.join(path.relative_to(HOME).with_suffix('').parts)
    for path in found
    if path.stem != '__init__'
  ]
  return [
    name
    for name in names
    if hasattr(importlib.import_module(name), 'get_config')
  ]
