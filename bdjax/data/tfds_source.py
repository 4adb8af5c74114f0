"""Prepared TFDS folders, read without TensorFlow and decoded once.

A folder `<root>/<name>/<version>` in array_record format is read through
`tfds.builder_from_directory(...).as_data_source`, decoded with PIL, resized
bilinearly (with antialiasing) where sizes differ, and cached (`cache`). The
cache is keyed by name, version, split, image size, number of examples and a
fingerprint of the record files, since two folders may hold the same data set
in a different order. A cached split opens without importing TFDS.

Order: ascending example id. TFDS numbers CIFAR's ids along the original
batches, so the official folders come out in torchvision's order, which
positions of poisoned examples refer to. Other preparations may have numbered
a shuffled set; `in_torchvision_order` tells.
"""

import hashlib
import io
import json
import pathlib
import re
from typing import Any

import numpy as np

from bdjax import checks, types
from bdjax.data import cache, splits

_CHUNK = 1000
_EDGE = 65536
_FIRST_LABELS = {
  'cifar10': ((6, 9, 9, 4, 1, 1, 2, 7, 8, 3), (3, 8, 8, 0, 6, 6, 1, 6, 3, 1)),
}


def find(name: str, root: pathlib.Path) -> pathlib.Path | None:
  """Folder of the newest prepared version, None where there is none."""
  found = [p.parent for p in (root / name).glob('*/dataset_info.json')]
  return max(found, key=_version, default=None)


def _version(folder: pathlib.Path) -> tuple[int, ...]:
  return tuple(int(part) for part in re.findall(r'\d+', folder.name))


def read(
  folder: pathlib.Path,
  spec: types.DataSpec,
  cache_root: pathlib.Path,
  test_split: str = 'test',
) -> splits.Dataset:
  """Reads a prepared folder through the cache.

  Args:
    folder: `<root>/<name>/<version>`.
    spec: facts of the data set; images are brought to its size.
    cache_root: where decoded arrays are kept.
    test_split: the split that serves as test set.

  Returns:
    The data set with memory-mapped images.

  Raises:
    ValueError: if the folder lacks a split or disagrees with `spec`.
  """
  train = read_split(folder, 'train', spec, cache_root)
  return splits.Dataset(
    spec, train, read_split(folder, test_split, spec, cache_root)
  )


def read_split(
  folder: pathlib.Path,
  split: str,
  spec: types.DataSpec,
  cache_root: pathlib.Path,
) -> splits.Split:
  """Reads one split of a prepared folder; arguments as in `read`."""
  sizes = _split_sizes(folder)
  if split not in sizes:
    raise ValueError(
      f'{folder} has no split {split!r}. {checks.suggest(split, sizes)}'
    )
  h, w, _ = spec.image_shape
  arrays = cache.fetch(
    cache_root / spec.name / f'{folder.name}-{_fingerprint(folder)}',
    f'{split}_{sizes[split]}_{h}x{w}',
    lambda: _decode_split(folder, split, spec),
  )
  return splits.checked(*arrays, source=f'{folder} {split}', spec=spec)


def _split_sizes(folder: pathlib.Path) -> dict[str, int]:
  """Number of examples of each split."""
  info = json.loads((folder / 'dataset_info.json').read_text())
  return {
    s['name']: sum(int(n) for n in s['shardLengths']) for s in info['splits']
  }


def _fingerprint(folder: pathlib.Path) -> str:
  """Digest of the folder's file names, sizes, heads and tails."""
  digest = hashlib.sha256()
  for path in sorted(p for p in folder.iterdir() if p.is_file()):
    size = path.stat().st_size
    digest.update(f'{path.name}:{size}'.encode())
    with path.open('rb') as file:
      digest.update(file.read(_EDGE))
      file.seek(max(size - _EDGE, 0))
      digest.update(file.read(_EDGE))
  return digest.hexdigest()[:12]


def _decode_split(
  folder: pathlib.Path, split: str, spec: types.DataSpec
) -> splits.Split:
  """All examples of a split, by ascending id."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(folder)
  # TFDS would decode with whatever it finds, OpenCV or PIL, which differ in
  # the last bits of a JPEG.
  source: Any = builder.as_data_source(
    split=split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  rows = []
  for start in range(0, len(source), _CHUNK):
    stop = min(start + _CHUNK, len(source))
    rows += source.__getitems__(list(range(start, stop)))
  if 'id' in rows[0]:
    rows.sort(key=lambda row: (len(row['id']), row['id']))
  images = np.empty((len(rows), *spec.image_shape), np.uint8)
  for i, row in enumerate(rows):
    images[i] = _decode(row['image'], spec.image_shape)
  return splits.Split(images, np.array([r['label'] for r in rows], np.int32))


def _decode(encoded: Any, shape: tuple[int, int, int]) -> np.ndarray:
  """An encoded picture as RGB bytes of the wanted size."""
  from PIL import Image

  h, w, _ = shape
  with Image.open(io.BytesIO(encoded)) as image:
    image = image.convert('RGB')
    if image.size != (w, h):
      image = image.resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(image)


def in_torchvision_order(dataset: splits.Dataset) -> bool:
  """Whether CIFAR-10 has the order that published indices refer to.

  Decided by the first ten labels of both splits. Positions drawn anew work in
  any order; positions read from a file, or drawn with NumPy's legacy generator
  to repeat a published figure, need this one.

  Args:
    dataset: the whole of CIFAR-10.

  Returns:
    True if the labels agree.

  Raises:
    ValueError: for data sets whose first labels are not known here.
  """
  name = dataset.spec.name
  if name not in _FIRST_LABELS:
    raise ValueError(
      f"The order of '{name}' is not known; only {sorted(_FIRST_LABELS)} can "
      'be told.'
    )
  train, test = _FIRST_LABELS[name]
  return (
    tuple(dataset.train.labels[:10].tolist()) == train
    and tuple(dataset.test.labels[:10].tolist()) == test
  )
