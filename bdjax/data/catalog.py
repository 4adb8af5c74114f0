"""Which data sets there are, and how each is loaded."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from bdjax import registry, types
from bdjax.data import (
  arrays,
  digits,
  places,
  specs,
  splits,
  synthetic,
  tfds_source,
)


class Entry(NamedTuple):
  """One data set.

  Attributes:
    spec: static facts; None where they are known only after loading.
    make: builds the data set in memory; None where it is read from disk.
    test_split: name of the split that serves as test set.
  """

  spec: types.DataSpec | None
  make: Callable[[], splits.Dataset] | None = None
  test_split: str = 'test'


REGISTRY: dict[str, Entry] = {
  'synthetic': Entry(specs.SPECS['synthetic'], synthetic.load),
  'digits16': Entry(specs.SPECS['digits16'], lambda: digits.load('digits16')),
  'digits32': Entry(specs.SPECS['digits32'], lambda: digits.load('digits32')),
  'cifar10': Entry(specs.SPECS['cifar10']),
  'cifar100': Entry(specs.SPECS['cifar100']),
  'gtsrb': Entry(specs.SPECS['gtsrb']),
  # The official test labels are not public; its validation split is the test
  # set of this field.
  'tiny_imagenet': Entry(specs.SPECS['tiny_imagenet'], test_split='validation'),
  'tiny_imagenet10': Entry(
    specs.SPECS['tiny_imagenet10'], test_split='validation'
  ),
  'arrays': Entry(None),
}


def load(
  name: str,
  *,
  data_dir: places.Path | None = None,
  cache_dir: places.Path | None = None,
  num_train: int | None = None,
  num_test: int | None = None,
) -> splits.Dataset:
  """Loads a data set as uint8 arrays. Never downloads.

  'synthetic' and the digits are made on the spot. All others are read from
  `data_dir`: from arrays (`<name>_train_images.npy` …, `<name>.npz`) if they
  are there, else from a prepared TFDS folder, through a cache of decoded
  images.

  Args:
    name: a key of `REGISTRY`.
    data_dir: folder of prepared data; None takes $BDJAX_DATA_DIR, else TFDS's
      default.
    cache_dir: folder of decoded images; None takes $BDJAX_CACHE_DIR, else
      ~/.cache/bdjax.
    num_train: keep this many training examples (`splits.subset`); None = all.
    num_test: keep this many test examples; None = all.

  Returns:
    The data set. Images of a cached set are memory-mapped and read-only.

  Raises:
    registry.UnknownName: for an unknown name, with the nearest one.
    MissingDataError: if it is not in `data_dir`, with the command to run.
    ValueError: if what is there does not fit, or a number is out of range.

  Example:
    >>> load('synthetic', num_train=64).train.images.shape
    (64, 8, 8, 3)
  """
  entry = registry.get(REGISTRY, name, 'data set')
  if entry.make is not None:
    dataset = entry.make()
  else:
    root, cache = places.data_root(data_dir), places.cache_root(cache_dir)
    dataset = _read(name, entry, root, cache)
  return splits.Dataset(
    dataset.spec,
    splits.subset(dataset.train, num_train, name='num_train'),
    splits.subset(dataset.test, num_test, name='num_test'),
  )


def _read(
  name: str, entry: Entry, root: pathlib.Path, cache: pathlib.Path
) -> splits.Dataset:
  """Reads arrays or a TFDS folder, whichever is there."""
  found = arrays.find(name, root)
  if found is not None:
    return arrays.read(found, root, entry.spec)
  if entry.spec is None:
    raise places.MissingDataError(
      f"No arrays in {root}. '{name}' needs train_images.npy, "
      'train_labels.npy, test_images.npy and test_labels.npy there, or '
      f'{name}.npz with these four keys; pass their folder as `data_dir`.'
    )
  folder = tfds_source.find(name, root)
  if folder is None:
    raise places.missing(name, root)
  return tfds_source.read(folder, entry.spec, cache, entry.test_split)


def spec(name: str) -> types.DataSpec:
  """Static facts of a data set, without loading it.

  Args:
    name: a key of `REGISTRY` other than 'arrays'.

  Returns:
    Its DataSpec.

  Raises:
    registry.UnknownName: for an unknown name.
    ValueError: for 'arrays', whose facts are in the files.
  """
  entry = registry.get(REGISTRY, name, 'data set')
  if entry.spec is None:
    raise ValueError(
      f"The spec of '{name}' is known only after loading it: use "
      f"data.load('{name}', data_dir=...).spec."
    )
  return entry.spec
