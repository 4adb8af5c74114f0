"""Data sets given as plain arrays: .npy files or one .npz.

In a folder, `<name>_train_images.npy`, `<name>_train_labels.npy` and the same
two for the test split (`test`, `validation` or `val`), or `<name>.npz` with
the keys `train_images`, `train_labels`, `test_images`, `test_labels`.

The name 'arrays' is for data sets of one's own: its files may go without the
prefix, and `arrays_spec.json` (or `spec.json`) may give fields of DataSpec,
such as {"num_classes": 5, "mean": [0, 0, 0], "std": [1, 1, 1], "flip": true}.
What it leaves out is taken from the arrays: the classes from the labels, mean
and deviation from the training images; no crop and no flip.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bdjax import checks, types
from bdjax.data import splits

_TEST_NAMES = ('test', 'validation', 'val')
_CHUNK = 1000


def find(name: str, root: pathlib.Path) -> Mapping[str, Any] | None:
  """The arrays of a data set by key, None where there are none.

  Args:
    name: name of the data set, 'arrays' for one without a name.
    root: a folder, or an .npz file.

  Returns:
    {'train_images': …, 'train_labels': …, 'test_images': …, 'test_labels': …}

  Raises:
    FileNotFoundError: if some of the files are there but not all.
  """
  stems = (f'{name}_', '') if name == 'arrays' else (f'{name}_',)
  for path in (root, root / f'{name}.npz'):
    if path.suffix == '.npz' and path.is_file():
      with np.load(path) as archive:
        return _collect(lambda key: archive.get(key), str(path))
  for stem in stems:
    if any(root.glob(f'{stem}train_*.npy')):
      return _collect(
        lambda key, stem=stem: _open(root / f'{stem}{key}.npy'),
        str(root / stem),
      )
  return None


def _open(path: pathlib.Path) -> np.ndarray | None:
  return np.load(path, mmap_mode='r') if path.is_file() else None


def _collect(get, source: str) -> dict[str, np.ndarray]:
  """Four arrays by key, whatever the test split is called."""
  found = {}
  for split, names in (('train', ('train',)), ('test', _TEST_NAMES)):
    for kind in ('images', 'labels'):
      arrays = [get(f'{name}_{kind}') for name in names]
      array = next((a for a in arrays if a is not None), None)
      if array is None:
        raise FileNotFoundError(
          f"{source}: '{split}_{kind}' is missing; a data set of arrays has "
          'train_images, train_labels, test_images and test_labels.'
        )
      found[f'{split}_{kind}'] = array
  return found


def read(
  found: Mapping[str, Any], root: pathlib.Path, spec: types.DataSpec | None
) -> splits.Dataset:
  """Validates arrays and completes their spec.

  Args:
    found: what `find` gave.
    root: where they lie, for messages and for the spec file.
    spec: facts of a known data set; None derives them.

  Returns:
    The data set; images of .npy files stay memory-mapped.

  Raises:
    TypeError: for wrong dtypes.
    ValueError: for wrong shapes, lengths or labels, naming the cure.
  """

  def split(name: str) -> splits.Split:
    images, labels = found[f'{name}_images'], found[f'{name}_labels']
    return splits.checked(images, labels, source=f'{root} {name}', spec=spec)

  train, test = split('train'), split('test')
  if spec is None:
    spec = _derive_spec(train, test, _given(root))
    test = splits.checked(*test, source=f'{root} test', spec=spec)
    train = splits.checked(*train, source=f'{root} train', spec=spec)
  return splits.Dataset(spec, train, test)


def _given(root: pathlib.Path) -> dict[str, Any]:
  """Fields of DataSpec from the spec file, {} where there is none."""
  folder = root if root.is_dir() else root.parent
  fields = {f.name for f in dataclasses.fields(types.DataSpec)}
  for path in (folder / 'arrays_spec.json', folder / 'spec.json'):
    if path.is_file():
      given = json.loads(path.read_text())
      for key in given:
        if key not in fields:
          raise ValueError(
            f"{path}: unknown field '{key}'. {checks.suggest(key, fields)}"
          )
      return {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items()
      }
  return {}


def _derive_spec(
  train: splits.Split, test: splits.Split, given: dict[str, Any]
) -> types.DataSpec:
  """Facts that the arrays themselves tell, where none are given."""
  facts: dict[str, Any] = {
    'name': 'arrays',
    'image_shape': tuple(train.images.shape[1:]),
    'num_classes': int(max(train.labels.max(), test.labels.max())) + 1,
  }
  if not {'mean', 'std'} <= given.keys():
    facts['mean'], facts['std'] = moments(train.images)
  return types.DataSpec(**facts | given)


def moments(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation of each channel, in [0, 1] units.

  Args:
    images: uint8 [N, h, w, c]; read in chunks.

  Returns:
    (mean, std), each of length c; a constant channel gets deviation 1.
  """
  count, first, second = 0, np.zeros(()), np.zeros(())
  for start in range(0, len(images), _CHUNK):
    chunk = np.asarray(images[start : start + _CHUNK], np.float64) / 255
    count += chunk.size // chunk.shape[-1]
    first = first + chunk.sum((0, 1, 2))
    second = second + (chunk**2).sum((0, 1, 2))
  mean = first / count
  std = np.sqrt(np.maximum(second / count - mean**2, 0))
  std = np.where(std > 1e-6, std, 1.0)
  return tuple(mean.tolist()), tuple(std.tolist())
