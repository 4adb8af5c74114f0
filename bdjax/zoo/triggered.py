"""Triggered images that BackdoorBench stored with a model, in all its layouts.

Version 2 keeps an indicator of the whole split and a dictionary by position:
of PNG files ('disk') or of PIL images ('memory'). Version 1 keeps lists. The
layout of PNG files, `<split>/<true label>/<index>.png`, is written here too.

References: SCLBD/BackdoorBench: utils/bd_dataset_v2.py,
utils/save_load_attack.py
"""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FOLDERS = {'bd_train': 'bd_train_dataset', 'bd_test': 'bd_test_dataset'}


class Stored(NamedTuple):
  """Triggered images of one split, by position.

  Attributes:
    index: int32 [n], positions in the split, ascending.
    images: uint8 [n, h, w, c].
    labels: int32 [n], what the attacker calls them.
    original: int32 [n], their true classes.
  """

  index: np.ndarray
  images: np.ndarray
  labels: np.ndarray
  original: np.ndarray


class _Lists(NamedTuple):
  """What a layout yields: one entry per stored image, in any order."""

  index: Sequence[int]
  images: Sequence[Any]
  labels: Sequence[Any]
  original: Sequence[Any]


def read(
  folder: pathlib.Path,
  part: str,
  state: Mapping[str, Any] | None,
  image_shape: tuple[int, int, int],
  true_labels: np.ndarray | None = None,
) -> Stored:
  """Reads the stored images of one split.

  Args:
    folder: folder of the run.
    part: 'bd_train' or 'bd_test'.
    state: what the run's file has under that name; None = no images.
    image_shape: (h, w, c).
    true_labels: int [N], of the whole split, which version 1 does not store
      for training images; then positions are checked against them too.

  Returns:
    The images.

  Raises:
    FileNotFoundError: if a PNG file is missing.
    ValueError: if sizes or positions disagree.
  """
  if not state:
    return _stored(folder, _Lists([], [], [], []), image_shape)
  if 'x' in state:
    found = _lists_of_v1(folder, part, state, true_labels)
  else:
    found = _lists_of_v2(folder, part, state, image_shape, true_labels)
  return _stored(folder, found, image_shape)


def write(folder: str | os.PathLike, train: Stored, test: Stored) -> None:
  """Writes images as PNG files in the layout of version 2.

  Args:
    folder: `bd_train_dataset/<true label>/<index>.png` and the same for the
      test set are made below it.
    train: triggered training images.
    test: triggered test images.

  Raises:
    FileExistsError: if one of the two folders is there already.
  """
  from PIL import Image

  for name, stored in zip(FOLDERS.values(), (train, test), strict=True):
    root = pathlib.Path(folder, name)
    root.mkdir(parents=True)
    for index, image, _, original in zip(*stored, strict=True):
      (root / str(original)).mkdir(exist_ok=True)
      pixels = image[..., 0] if image.shape[-1] == 1 else image
      Image.fromarray(pixels).save(root / str(original) / f'{index}.png')


def _lists_of_v2(folder, part, state, image_shape, true_labels) -> _Lists:
  container = state['bd_data_container']
  entries = {int(i): entry for i, entry in container['data_dict'].items()}
  suffix = container.get('save_file_format') or '.png'
  indicator = np.asarray(state['poison_indicator'])
  if true_labels is not None and len(indicator) != len(true_labels):
    raise ValueError(
      f'The run was made on {len(indicator)} training images, and there are '
      f'{len(true_labels)} here; give the whole data set by --data_dir.'
    )
  used = np.unique(np.asarray(state['original_index_array'], np.int64))
  index = [int(i) for i in used if indicator[i]]
  missing = [i for i in index if i not in entries]
  if missing:
    raise ValueError(
      f'{folder} marks image {missing[0]} as triggered and does not store it '
      f'({len(missing)} such); get the complete file of the run.'
    )
  images, labels, original = [], [], []
  for i in index:
    entry = entries[i]
    if isinstance(entry, Mapping):
      label, true = entry['other_info']
      name = f'{FOLDERS[part]}/{_label(true)}/{i}{suffix}'
      images.append(_png(folder, name, str(entry['path']), image_shape))
    else:
      image, label, true = entry
      images.append(image)
    labels.append(label)
    original.append(true)
  return _Lists(index, images, labels, original)


def _lists_of_v1(folder, part, state, true_labels) -> _Lists:
  if state['x'] is None or state.get('original_index') is None:
    return _Lists([], [], [], [])
  index = np.asarray(state['original_index'], np.int64).reshape(-1)
  columns = {'images': list(state['x']), 'labels': list(state['y'])}
  if state.get('original_targets') is not None:
    columns['original'] = list(state['original_targets'])
  indicator = state.get('poison_indicator')
  if indicator is not None and len(indicator) == len(index):
    # Version 1.5 may list the whole split; the triggered ones are meant.
    kept, whole = np.flatnonzero(np.asarray(indicator)), len(index)
    index = index[kept]
    for name, column in columns.items():
      if len(column) == whole:
        columns[name] = [column[i] for i in kept]
  if 'original' not in columns:
    columns['original'] = _true_labels(folder, part, index, true_labels)
  sizes = {name: len(column) for name, column in columns.items()}
  if {*sizes.values()} != {len(index)}:
    raise ValueError(
      f'{folder}: `{part}` has {len(index)} positions and {sizes}; the file is '
      'damaged.'
    )
  return _Lists(
    list(index), columns['images'], columns['labels'], columns['original']
  )


def _true_labels(folder, part, index, labels) -> list:
  """True labels that the file does not hold."""
  if labels is None:
    raise ValueError(
      f'{folder}: `{part}` has no `original_targets`, without which the true '
      'classes are unknown; get a complete file of the run.'
    )
  if len(index) and index.max() >= len(labels):
    raise ValueError(
      f'The run poisoned image {index.max()} of a training set that has '
      f'{len(labels)} here; give the whole data set by --data_dir.'
    )
  return list(np.asarray(labels)[index])


def _stored(folder, found: _Lists, image_shape) -> Stored:
  """Arrays in ascending order of their positions."""
  index = np.asarray(found.index, np.int32)
  order = np.argsort(index, kind='stable')
  images = np.zeros((len(index), *image_shape), np.uint8)
  for row, i in enumerate(order.tolist()):
    images[row] = _image(folder, found.images[i], image_shape)
  to_array = lambda values: np.asarray([_label(v) for v in values], np.int32)
  return Stored(
    index[order],
    images,
    to_array(found.labels)[order],
    to_array(found.original)[order],
  )


def _image(folder, image, image_shape) -> np.ndarray:
  image = np.asarray(image)
  if image.ndim == 2:
    image = image[..., None]
  if image.dtype != np.uint8 or image.shape != tuple(image_shape):
    raise ValueError(
      f'{folder} stores an image of shape {image.shape} and dtype '
      f'{image.dtype}; expected uint8 {tuple(image_shape)}, as its `img_size` '
      'says.'
    )
  return image


def _label(value: Any) -> int:
  """A label, whatever kind of scalar it was stored as."""
  return int(np.asarray(value).reshape(()))


def _png(folder, name: str, stored: str, image_shape) -> np.ndarray:
  """One image, wherever the paths of the machine that made it pointed."""
  from PIL import Image

  candidates = [folder / name]
  parts = re.split(r'[\\/]+', stored)[-3:]
  if '..' not in parts:
    candidates.append(folder.joinpath(*filter(None, parts)))
  path = next((p for p in candidates if p.is_file()), None)
  if path is None:
    raise FileNotFoundError(
      f'There is no image {candidates[0]}; unpack the whole archive of the '
      f'run, with the folders {" and ".join(FOLDERS.values())}.'
    )
  height, width, channels = image_shape
  with Image.open(path, formats=('PNG', 'JPEG', 'BMP')) as picture:
    if picture.size != (width, height):  # known before it is decoded
      raise ValueError(
        f'{path} has {picture.size[0]}×{picture.size[1]} pixels, and the run '
        f'says {width}×{height}; images are not resized.'
      )
    return np.asarray(picture.convert('L' if channels == 1 else 'RGB'))
