"""Preparing data sets: the one place that downloads.

`prepare(name)` writes a TFDS folder in array_record format, from archives in
`manual_dir` or from the network, without TensorFlow. The builders import TFDS,
so they are loaded only here, when asked for.
"""

import importlib
import pathlib
import tarfile
import urllib.error
import urllib.request
import zipfile

from bdjax import registry
from bdjax.data import catalog, places

_BUILDERS = {
  'cifar10': ('cifar', 'Cifar10'),
  'cifar100': ('cifar', 'Cifar100'),
  'gtsrb': ('gtsrb', 'Gtsrb'),
  'tiny_imagenet': ('tiny_imagenet', 'TinyImagenet'),
  'tiny_imagenet10': ('tiny_imagenet', 'TinyImagenet10'),
}

_PROBE_SECONDS = 20
_FAULTS = (
  OSError,
  ValueError,
  EOFError,
  zipfile.BadZipFile,
  tarfile.TarError,
)


class PrepareError(RuntimeError):
  """A data set could not be prepared; the message says what to do."""


def prepare(
  name: str,
  *,
  data_dir: places.Path | None = None,
  manual_dir: places.Path | None = None,
) -> pathlib.Path:
  """Downloads and converts a data set; does nothing if that is done already.

  Args:
    name: a data set that is read from disk, such as 'cifar10' or 'gtsrb'.
    data_dir: folder to write to; None as in `data.load`.
    manual_dir: folder with the official archives, or with what they unpack
      to; nothing is downloaded then. The archives are named in the builder's
      module.

  Returns:
    The prepared folder `<data_dir>/<name>/<version>`.

  Raises:
    registry.UnknownName: for an unknown name.
    ValueError: for a data set that needs no preparation.
    FileNotFoundError: if `manual_dir` does not hold what is needed.
    PrepareError: if the download fails, or an archive is damaged.
  """
  registry.get(catalog.REGISTRY, name, 'data set')
  if name not in _BUILDERS:
    raise ValueError(
      f"'{name}' needs no preparation, load it with data.load('{name}'); "
      f'preparable: {", ".join(_BUILDERS)}.'
    )
  manual = _existing(manual_dir)
  module, cls = _BUILDERS[name]
  loaded = importlib.import_module(f'bdjax.data.builders.{module}')
  root = places.data_root(data_dir)
  builder = getattr(loaded, cls)(data_dir=root, file_format='array_record')
  builder.manual = manual
  if manual is None and not builder.data_path.exists():
    _probe(builder, name, root)
  _run(builder, name, manual)
  return pathlib.Path(builder.data_path)


def _existing(manual_dir: places.Path | None) -> pathlib.Path | None:
  """The manual folder, if one is given it must be there."""
  if manual_dir is None:
    return None
  path = pathlib.Path(manual_dir).expanduser()
  if not path.is_dir():
    raise FileNotFoundError(f'`manual_dir={manual_dir}` is not a folder.')
  return path


def _probe(builder, name: str, root: pathlib.Path) -> None:
  """Fails at once without a network, where TFDS would retry for minutes."""
  if any((root / 'downloads' / name).glob('*')):
    return  # an earlier run may have fetched everything already
  request = urllib.request.Request(builder.URL, method='HEAD')
  try:
    urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
  except urllib.error.HTTPError:
    return  # somebody answers; what is wrong, TFDS will find out
  except OSError as error:
    raise PrepareError(_advice(builder, name, None, error)) from error


def _run(builder, name: str, manual: pathlib.Path | None) -> None:
  """Runs TFDS; network and archive faults become one kind of error."""
  import tensorflow_datasets as tfds

  config = tfds.download.DownloadConfig(
    manual_dir=manual, try_download_gcs=False
  )
  try:
    builder.download_and_prepare(download_config=config)
  except (FileNotFoundError, PermissionError):
    raise
  except (
    *_FAULTS,
    tfds.download.DownloadError,
    tfds.download.download_manager.NonMatchingChecksumError,
  ) as error:
    raise PrepareError(_advice(builder, name, manual, error)) from error


def _advice(builder, name: str, manual, error: Exception) -> str:
  """What failed and the way round it."""
  cause = f"Preparing '{name}' failed: {type(error).__name__}: {error}"
  if manual is not None:
    return f'{cause}\nCheck the archives in {manual}.'
  return (
    f'{cause}\nWithout a network, fetch the archives named in '
    f'{type(builder).__module__} elsewhere, put them into a folder DIR and '
    f'run\n  python -m launch.prepare_data --dataset={name} --manual_dir=DIR'
  )
