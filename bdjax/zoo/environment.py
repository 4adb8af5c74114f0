"""What a run ran on: versions, commit, device; never a path or a name."""

import datetime
import functools
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

import bdjax

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@functools.cache
def _versions() -> dict[str, str]:
  found = {'bdjax': code_version(), 'python': platform.python_version()}
  for name in _PACKAGES:
    short = name.removesuffix('-checkpoint')
    try:
      found[short] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[short] = 'missing'
  return found


def versions() -> dict[str, str]:
  """Versions of bdjax, Python and the packages that decide numbers."""
  return dict(_versions())


@functools.cache
def code_version() -> str:
  """Commit of the checkout bdjax runs from, else the package version.

  A checkout with uncommitted changes says so: '0123456789ab+dirty'.
  """
  top = pathlib.Path(bdjax.__file__).resolve().parent.parent
  if not (top / '.git').exists():
    return bdjax.__version__
  commit = _git(top, 'rev-parse', '--short=12', 'HEAD')
  if not commit:
    return bdjax.__version__
  dirty = _git(top, 'status', '--porcelain', '--untracked-files=no')
  return f'{commit}+dirty' if dirty else commit


def _git(top: pathlib.Path, *arguments: str) -> str:
  """Output of a git command, '' where git is missing or fails."""
  try:
    done = subprocess.run(
      ['git', '-C', str(top), *arguments],
      capture_output=True,
      text=True,
      timeout=10,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''


def device_kind() -> str:
  """Kind of the first device, such as 'cpu' or 'NVIDIA H100 80GB HBM3'."""
  return jax.devices()[0].device_kind


def time_utc() -> str:
  """Now, as '2025-01-31T12:00:00Z'."""
  now = datetime.datetime.now(datetime.UTC)
  return now.strftime('%Y-%m-%dT%H:%M:%SZ')


def facts() -> dict[str, str | int]:
  """The record fields that describe a run's surroundings."""
  found = versions()
  return {
    'time_utc': time_utc(),
    'code_version': code_version(),
    'jax_version': found['jax'],
    'flax_version': found['flax'],
    'optax_version': found['optax'],
    'backend': jax.default_backend(),
    'device_kind': device_kind(),
    'n_devices': jax.device_count(),
    'host_kind': platform.machine(),
  }
