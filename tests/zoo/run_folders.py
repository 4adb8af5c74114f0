"""Writes run folders as BackdoorBench does, in all of its layouts."""

import pathlib

import numpy as np
from PIL import Image

from bdjax.zoo import triggered
from tests.zoo import torch_writer as writer

LAYOUTS = ('disk', 'memory', 'v1', 'v1.5')
ELSEWHERE = '/mnt/someone/record/run'  # paths of the machine that made it


def write(
  folder: pathlib.Path,
  layout: str,
  weights,
  train: triggered.Stored | None,
  test: triggered.Stored,
  *,
  num_train: int,
  num_test: int,
  arch: str = 'tiny',
  dataset: str = 'synthetic',
  num_classes: int = 4,
  arguments: dict | None = None,
) -> pathlib.Path:
  """A run with these triggered images; `train` None as where none were kept."""
  to_v2 = lambda stored, num, name, only: _v2(
    folder, layout == 'disk', stored, num, name, only
  )
  if layout.startswith('v1'):
    parts = (
      _v1(train, num_train, layout == 'v1.5', has_truth=False),
      _v1(test, num_test, layout == 'v1.5', has_truth=True),
    )
  else:
    parts = (
      to_v2(train, num_train, triggered.FOLDERS['bd_train'], False),
      to_v2(test, num_test, triggered.FOLDERS['bd_test'], True),
    )
  content = {
    'model_name': arch,
    'num_classes': num_classes,
    'model': writer.tensors(weights),
    'data_path': f'../data/{dataset}',
    'img_size': tuple(test.images.shape[1:]),
    'clean_data': dataset,
    'bd_train': parts[0],
    'bd_test': parts[1],
  }
  writer.save(folder / 'attack_result.pt', content)
  if arguments is not None:
    writer.save(folder / 'info.pickle', arguments)
  return folder


def _v2(folder, on_disk, stored, num, name, only_poisoned):
  if stored is None:
    return None
  indicator = np.zeros(num)
  indicator[stored.index] = 1
  data_dict = {}
  for i, image, label, original in zip(*stored, strict=True):
    label, original = np.array(label), int(original)
    if on_disk:
      relative = f'{name}/{original}/{i}.png'
      path = folder / relative
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)
      entry = {
        'path': f'{ELSEWHERE}/{relative}',
        'other_info': [label, original],
      }
    else:
      entry = (Image.fromarray(image), label, original)
    data_dict[np.int64(i) if i % 2 else int(i)] = entry
  return {
    'bd_data_container': {
      'save_folder_path': f'{ELSEWHERE}/{name}' if on_disk else None,
      'save_file_format': '.png',
      'data_dict': data_dict,
    },
    'poison_indicator': indicator,
    'original_index_array': stored.index if only_poisoned else np.arange(num),
    'getitem_all': True,
    'getitem_all_switch': False,
    'save_folder_path': None,
  }


def _v1(stored, num, is_full, has_truth):
  if stored is None:
    return {'x': None, 'y': None, 'original_index': None}
  pictures = [Image.fromarray(image) for image in stored.images]
  labels, index = [int(y) for y in stored.labels], stored.index
  truth = [int(y) for y in stored.original]
  state = {}
  if is_full:  # all of the split, of which an indicator tells the triggered
    blank = Image.fromarray(np.zeros_like(stored.images[0]))
    spread = lambda values, fill: [
      dict(zip(stored.index.tolist(), values, strict=True)).get(i, fill)
      for i in range(num)
    ]
    pictures, labels = spread(pictures, blank), spread(labels, 0)
    truth, index = spread(truth, 0), np.arange(num)
    state['poison_indicator'] = np.isin(index, stored.index).astype(float)
  state |= {'x': pictures, 'y': labels, 'original_index': index}
  return state | ({'original_targets': truth} if has_truth else {})
