"""What all launchers share: flags, the resolved config, errors, exit codes.

Exit codes: 0 done; 2 bad input (the message names the cure); 1 anything else;
130 interrupted.
"""

import ast
import contextlib
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from bdjax import checks, data, registry, training, types, xla, zoo

_BAD_INPUT = (
  flags.Error,
  ValueError,
  TypeError,
  registry.UnknownName,
  FileNotFoundError,
  data.MissingDataError,
  zoo.CorruptArtefactError,
  training.NonFiniteError,
)

WORKDIR = flags.DEFINE_string(
  'workdir', 'runs', 'Folder of artefacts and records.'
)
DATA_DIR = flags.DEFINE_string(
  'data_dir',
  None,
  'Folder of prepared data sets or arrays; default: $BDJAX_DATA_DIR, else '
  "TFDS's own.",
)
SNAPSHOT_SECONDS = flags.DEFINE_float(
  'snapshot_seconds',
  15.0,
  'Least seconds between two snapshots, from which a killed run goes on.',
  lower_bound=0.0,
)
DEVICES = flags.DEFINE_integer(
  'devices',
  1,
  'Devices over which to spread each batch of a model trained from scratch.',
  lower_bound=1,
)
FORCE = flags.DEFINE_bool('force', False, 'Recompute what is finished already.')
CACHE = flags.DEFINE_string(
  'compilation_cache',
  '~/.cache/bdjax/xla',
  "Folder of compiled programs kept between runs; '' turns it off.",
)


class Context(NamedTuple):
  """Where and how a launcher works; no part of any result.

  Attributes:
    workdir: the store.
    data_dir: folder of prepared data, None for the default.
    force: whether finished runs are computed again.
    snapshot_seconds: least time between two snapshots of a training run.
    num_devices: over how many devices a training from scratch spreads each
      batch; its results agree to rounding.
  """

  workdir: pathlib.Path
  data_dir: str | None = None
  force: bool = False
  snapshot_seconds: float = 15.0
  num_devices: int = 1

  @property
  def devices(self) -> list[jax.Device] | None:
    """Those of `num_devices`; None for the default one.

    Raises:
      ValueError: if there are fewer.
    """
    if self.num_devices == 1:
      return None
    found = jax.devices()
    if self.num_devices > len(found):
      raise ValueError(
        f'`devices={self.num_devices}`, but there are {len(found)} of '
        f'{found[0].device_kind}; use 1 … {len(found)}.'
      )
    return found[: self.num_devices]

  @property
  def records(self) -> pathlib.Path:
    """File of the run records."""
    return self.workdir / 'records.jsonl'


def execution(config: config_dict.ConfigDict) -> types.Exec:
  """The `Exec` of a config."""
  return types.Exec(**config.exec.to_dict())


def variants(config: config_dict.ConfigDict) -> list[tuple]:
  """The settings that a config stands for.

  Args:
    config: with `variants.field` and `variants.values` one per value of that
      field, a hyper-parameter or one of the config itself; otherwise the
      config alone.

  Returns:
    [(config, name of the variant such as 'eps=0.1', or None)].
  """
  if 'variants' not in config:
    return [(config, None)]
  field, found = config.variants.field, []
  for value in config.variants['values']:
    one = config.copy_and_resolve_references()
    is_hyper = 'method' in one and field in one.method
    (one.method if is_hyper else one)[field] = value
    found.append((one, f'{field}={value}'))
  return found


def start(cache: str) -> None:
  """Sets the process up: quiet logs, the persistent compilation cache."""
  logging.set_verbosity(logging.WARNING)
  xla.tune_cpu()
  if cache:
    folder = os.path.expanduser(cache)
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def run(
  main: Callable[[config_dict.ConfigDict, Context], Any],
  default_config: str | None = None,
) -> None:
  """Runs a launcher: parses flags, prints the config, reports errors.

  Args:
    main: (config, context) -> anything; called once.
    default_config: config used where `--config` is not given; None = the
      launcher takes no config.
  """
  if default_config is not None:
    config_flags.DEFINE_config_file(
      'config', default_config, 'Config file, as in PATH.py:options.'
    )

  def launched(argv: list[str]) -> None:
    if len(argv) > 1:
      raise ValueError(
        f'Unexpected arguments {argv[1:]}; settings are flags, such as '
        '--config.seed=1.'
      )
    start(CACHE.value)
    config = flags.FLAGS.config if default_config else config_dict.ConfigDict()
    if default_config:
      print(f'config:\n{config}')
    context = Context(
      pathlib.Path(WORKDIR.value).expanduser(),
      DATA_DIR.value,
      FORCE.value,
      SNAPSHOT_SECONDS.value,
      DEVICES.value,
    )
    main(config, context)

  # absl's own parser would exit with code 1 where a flag is wrong.
  parse = lambda argv: flags.FLAGS(argv)
  sys.exit(
    guarded(
      lambda: app.run(launched, argv=_resolved(sys.argv), flags_parser=parse)
    )
  )


def guarded(fn: Callable[[], Any]) -> int:
  """Runs fn; bad input becomes one message and exit code 2."""
  try:
    fn()
  except _BAD_INPUT as error:
    print(f'\nerror: {error}', file=sys.stderr)
    return 2
  except (AttributeError, KeyError) as error:
    if not _is_config_error(error):
      raise
    print(f'\nerror: {_unknown_key(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('\ninterrupted; the same command goes on from here', file=sys.stderr)
    return 130
  return 0


def _unknown_key(error: BaseException) -> str:
  """What ml_collections says, without its layers of quotes."""
  text = str(error)
  with contextlib.suppress(SyntaxError, ValueError):
    while isinstance(inner := ast.literal_eval(text), str):
      text = inner
  key, _, hint = text.partition('\n')
  hint = hint or 'The keys are those of the config file.'
  return f"Unknown config key '{key.strip(chr(39))}'. {hint}"


def _is_config_error(error: BaseException) -> bool:
  """Whether ml_collections refused an override."""
  trace, names = error.__traceback__, set()
  while trace is not None:
    names.add(trace.tb_frame.f_globals.get('__name__', ''))
    trace = trace.tb_next
  return any(name.startswith('ml_collections') for name in names)


def _resolved(argv: list[str]) -> list[str]:
  """Lets `--config=configs/...` work from any folder."""
  flag = '--config='
  return [
    f'{flag}{_config_file(a[len(flag) :])}' if a.startswith(flag) else a
    for a in argv
  ]


def _config_file(given: str) -> str:
  """A config's path, here or beside the launchers, with its options."""
  name, colon, options = given.partition(':')
  home = pathlib.Path(__file__).resolve().parent.parent
  for path in (pathlib.Path(name), home / name):
    if path.is_file():
      return f'{path}{colon}{options}'
  known = sorted((home / 'configs').glob('*/*.py'))
  names = [str(p.relative_to(home)) for p in known if p.stem != '__init__']
  raise FileNotFoundError(
    f"There is no config '{name}'. {checks.suggest(name, names)}"
  )
