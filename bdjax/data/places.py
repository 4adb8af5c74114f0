"""Where data sets and caches live, and the error for those that do not."""

import os
import pathlib

Path = str | os.PathLike


class MissingDataError(FileNotFoundError):
  """A data set that has not been prepared; the message names the command."""

  def __str__(self) -> str:
    return str(self.args[0])


def data_root(data_dir: Path | None = None) -> pathlib.Path:
  """Folder of prepared data sets.

  Args:
    data_dir: the caller's choice; else $BDJAX_DATA_DIR, else TFDS's own
      default ($TFDS_DATA_DIR, ~/tensorflow_datasets).

  Returns:
    The path; it need not exist.
  """
  chosen = (
    data_dir
    or os.environ.get('BDJAX_DATA_DIR')
    or os.environ.get('TFDS_DATA_DIR')
    or '~/tensorflow_datasets'
  )
  return pathlib.Path(chosen).expanduser()


def cache_root(cache_dir: Path | None = None) -> pathlib.Path:
  """Folder of decoded arrays.

  Args:
    cache_dir: the caller's choice; else $BDJAX_CACHE_DIR, else ~/.cache/bdjax.

  Returns:
    The path; it need not exist.
  """
  chosen = cache_dir or os.environ.get('BDJAX_CACHE_DIR') or '~/.cache/bdjax'
  return pathlib.Path(chosen).expanduser()


def missing(name: str, root: pathlib.Path) -> MissingDataError:
  """The error for a data set that is not under `root`."""
  return MissingDataError(
    f"Data set '{name}' is not in {root}. Loading never downloads; prepare it "
    f'once with\n  python -m launch.prepare_data --dataset={name} '
    f'--data_dir={root}\nor point `data_dir` or $BDJAX_DATA_DIR at a folder '
    f'that has {name}/<version>/ (TFDS, array_record) or '
    f'{name}_train_images.npy and its companions.'
  )
