"""Run folders of BackdoorBench: attacked models with their poisoned images.

`open_run` reads `attack_result.pt`: the weights and what they were made with.
`read_poison` then reads the images (`triggered`) and tells poisoned from cover
images. Positions count in the data set's own order there, which is
torchvision's; `check_order` holds them against the data at hand. What the files
do not have is a trigger for other images: only those that were stored are
known.

References: SCLBD/BackdoorBench: utils/save_load_attack.py
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bdjax import types
from bdjax.zoo import torch_files, triggered

RESULT = 'attack_result.pt'
ARGUMENTS = 'info.pickle'
BLOCK = 128  # images per batch of the attacks that poison inside the loop
RATIOS = (0.001, 0.005, 0.01, 0.05, 0.1)  # of the benchmark

_DATASETS = {'tiny': 'tiny_imagenet', 'tinyimagenet': 'tiny_imagenet'}
_ATTACKS = {
  'badnet': 'badnets',
  'inputaware': 'input_aware',
  'ftrojann': 'ftrojan',
  'lowfrequency': 'lf',
  'labelconsistent': 'lc',
  'poisonink': 'poison_ink',
}
_KNOWN = (
  'badnets blended lc sig lf ssba wanet input_aware trojannn bpp lira blind '
  'ctrl ftrojan refool poison_ink'
).split()
# A patch covers less of the image than this.
_PATCH = 0.25


class Source(NamedTuple):
  """An attacked model as stored, before its images are read.

  Attributes:
    folder: folder of the run.
    weights: state dictionary by torch's names.
    arch: registry key of the architecture.
    dataset: registry key of the data set.
    num_classes: width of the logits.
    image_shape: (h, w, c).
    arguments: what the run was started with; {} where that was not kept.
    parts: the stored states of 'bd_train' and 'bd_test'.
  """

  folder: pathlib.Path
  weights: dict[str, np.ndarray]
  arch: str
  dataset: str
  num_classes: int
  image_shape: tuple[int, int, int]
  arguments: dict[str, Any]
  parts: dict[str, Any]


class Poison(NamedTuple):
  """What an attack did to the data.

  Attributes:
    name: registry key of the attack.
    label_mode: 'all2one' or 'all2all'.
    target_label: class the trigger leads to; None for all-to-all.
    label_shift: classes further on, for all-to-all.
    poison_ratio: poisoned / whole training set, as the run was told; None
      where no training images were stored and nothing tells.
    clean_label: whether training labels stayed.
    kind: int8 [N], types.CLEAN, POISONED or COVER of each training image.
    train: the triggered training images, poisoned and cover.
    test: the triggered test images.
  """

  name: str
  label_mode: str
  target_label: int | None
  label_shift: int
  poison_ratio: float | None
  clean_label: bool
  kind: np.ndarray
  train: triggered.Stored
  test: triggered.Stored


def open_run(path: str | os.PathLike) -> Source:
  """Reads the weights of a run and the facts beside them.

  Args:
    path: folder of the run, or its `attack_result.pt`.

  Returns:
    The source; no PNG has been read yet.

  Raises:
    FileNotFoundError: if there is no `attack_result.pt`.
    RefusedFileError: if a file is no plain torch file.
    ValueError: if the file holds something else.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f'There is no run at {path}; give the folder that holds {RESULT}.'
    )
  folder = path if path.is_dir() else path.parent
  path = path / RESULT if path.is_dir() else path
  content = torch_files.read(path)
  needed = 'model_name num_classes model img_size clean_data bd_test'.split()
  missing = [
    n for n in needed if not isinstance(content, dict) or n not in content
  ]
  if missing:
    raise ValueError(
      f'{path} has no {", ".join(missing)}, so it is no attack result of '
      'BackdoorBench; weights alone are read by zoo.backdoorbench.read_weights.'
    )
  dataset = str(content['clean_data']).lower()
  height, width, channels = map(int, content['img_size'])
  return Source(
    folder,
    dict(content['model']),
    str(content['model_name']),
    _DATASETS.get(_plain_name(dataset), dataset),
    int(content['num_classes']),
    (height, width, channels),
    _arguments(folder),
    {name: content.get(name) for name in ('bd_train', 'bd_test')},
  )


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads weights alone: a state dictionary, or a file that has one inside.

  Args:
    path: such as `clean_model.pth`, or the `defense_result.pt` of a defense.

  Returns:
    The state dictionary by torch's names.

  Raises:
    FileNotFoundError: if there is no such file.
    RefusedFileError: if it is no plain torch file.
    ValueError: if there is no state dictionary in it.
  """
  content = torch_files.read(path)
  if isinstance(content, dict):
    for name in ('model', 'state_dict', 'net'):
      if isinstance(content.get(name), dict):
        content = content[name]
        break
  if (
    not isinstance(content, dict)
    or not content
    or not all(isinstance(x, np.ndarray) for x in content.values())
  ):
    raise ValueError(
      f'{os.fspath(path)} holds no state dictionary; save one with '
      "torch.save(model.state_dict(), 'clean_model.pth')."
    )
  return content


def read_poison(
  source: Source,
  train_labels: np.ndarray,
  *,
  name: str | None = None,
  poison_ratio: float | None = None,
) -> Poison:
  """Reads the triggered images of a run and what follows from them.

  Args:
    source: from `open_run`.
    train_labels: int [N], true labels of the training set in the run's order.
    name: registry key of the attack; None = as the files or the folder say.
    poison_ratio: poisoned / whole training set; None = as the files say.

  Returns:
    The poison.

  Raises:
    FileNotFoundError: if an image is missing.
    ValueError: if there are no triggered test images, if their labels follow
      no rule, or if sizes disagree.
  """
  train_labels = np.asarray(train_labels, np.int32)
  read = lambda part, labels=None: triggered.read(
    source.folder, part, source.parts[part], source.image_shape, labels
  )
  train, test = read('bd_train', train_labels), read('bd_test')
  if not len(test.index):
    raise ValueError(
      f'{source.folder} holds no triggered test images; they alone stand for '
      'the trigger. Get the complete folder of the run.'
    )
  rule = _label_rule(source, test)
  target = rule['target_label']
  ratio = _first(poison_ratio, source.arguments, 'pratio', 'poison_ratio')
  kind, ratio = kind_codes(train, len(train_labels), target, ratio)
  poisoned = kind[train.index] == types.POISONED
  return Poison(
    name=name or _attack_name(source),
    **rule,
    poison_ratio=ratio,
    clean_label=bool(len(train.index))
    and bool(np.all(train.labels[poisoned] == train.original[poisoned])),
    kind=kind,
    train=train,
    test=test,
  )


def kind_codes(
  train: triggered.Stored,
  num_train: int,
  target_label: int | None,
  poison_ratio: float | None = None,
) -> tuple[np.ndarray, float | None]:
  """Tells poisoned from cover images.

  Images with a new label are poisoned. Those that kept theirs are cover images
  if any of them is not of the target class; then blocks of 128 positions begin
  with poisoned and go on with cover images, which decides about the target
  class itself. Otherwise they are poisoned too.

  Args:
    train: the stored training images.
    num_train: size N of the training set.
    target_label: the target class, None for all-to-all.
    poison_ratio: poisoned / whole training set; None = from the images.

  Returns:
    (int8 [N], the ratio; None where there are no images to tell it).
  """
  kind = np.full(num_train, types.CLEAN, np.int8)
  same = train.labels == train.original
  is_cover = same & (train.original != target_label)
  if not is_cover.any():
    kind[train.index] = types.POISONED
    if poison_ratio is None and len(train.index):
      poison_ratio = len(train.index) / num_train
    return kind, poison_ratio
  slot, start = train.index % BLOCK, train.index - train.index % BLOCK
  size = np.minimum(BLOCK, num_train - start)
  if poison_ratio is None:
    poison_ratio = _ratio(int(slot[is_cover & (size == BLOCK)].min()))
  # A ratio of less than one per block still poisons some blocks' first image.
  first = np.maximum(1, (poison_ratio * size).astype(int))
  is_cover |= same & (slot >= first)
  kind[train.index] = np.where(is_cover, types.COVER, types.POISONED)
  return kind, poison_ratio


def check_order(
  poison: Poison, train: Any, test: Any, tolerated: float = 0.0
) -> None:
  """Holds stored true labels, and a patch, against the data at hand.

  Args:
    poison: from `read_poison`.
    train: (images, labels) of the training set.
    test: (images, labels) of the test set.
    tolerated: share of labels that may differ.

  Raises:
    ValueError: if the data are others, or in another order.
  """
  for split, stored, (images, labels) in (
    ('training', poison.train, train),
    ('test', poison.test, test),
  ):
    if not len(stored.index):
      continue
    if stored.index[-1] >= len(labels):
      raise ValueError(
        f'The run stored image {stored.index[-1]} of a {split} set that has '
        f'{len(labels)} here; give the whole data set by --data_dir.'
      )
    if images.shape[1:] != stored.images.shape[1:]:
      raise ValueError(
        f'The run stored images of shape {stored.images.shape[1:]}, the '
        f'{split} set has {images.shape[1:]}; give the data set it was made on.'
      )
    wrong = float(np.mean(np.asarray(labels)[stored.index] != stored.original))
    if wrong > tolerated:
      raise ValueError(
        f'{wrong:.1%} of the stored true labels are not those of our {split} '
        "set at their positions; it must be in the run's order, which is "
        "torchvision's (for TFDS: data.in_torchvision_order)."
      )
    if poison.name == 'badnets':
      _check_patch(split, stored, images)


def _check_patch(split: str, stored: triggered.Stored, images: Any) -> None:
  """BadNets changes one place of an image and nothing else."""
  rows = stored.index[:200]  # enough to tell, whatever the size of the set
  clean = np.asarray(images[rows])
  changed = (clean != stored.images[: len(rows)]).any(axis=(0, 3))
  if changed.mean() > _PATCH:
    raise ValueError(
      f'The {split} images differ from ours in {changed.mean():.0%} of the '
      'pixels, which no patch does; our data are in another order or were '
      'resized in another way.'
    )


def _arguments(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / ARGUMENTS
  if not path.is_file():
    return {}
  try:
    found = torch_files.read(path)
  except torch_files.RefusedFileError as error:
    raise torch_files.RefusedFileError(
      f'{error} It only describes the run: move it away, and name the attack '
      'and its ratio yourself.'
    ) from error
  return found if isinstance(found, dict) else {}


def _first(given: Any, arguments: Mapping, *names: str) -> float | None:
  """The first number known under these names."""
  for value in (given, *(arguments.get(name) for name in names)):
    if isinstance(value, (int, float)):
      return float(value)
  return None


def _plain_name(name: str) -> str:
  return re.sub(r'[^a-z0-9]', '', name.lower())


def _attack_name(source: Source) -> str:
  """Registry key of the attack, from the arguments or the folder's name."""
  known = _ATTACKS | {_plain_name(name): name for name in _KNOWN}
  given = source.arguments.get('attack')
  if isinstance(given, str) and given:
    return known.get(_plain_name(given), given)
  folder = source.folder.resolve().name.lower()
  parts = re.split(r'[^a-z0-9]+', folder)
  joined = parts + [a + b for a, b in zip(parts, parts[1:], strict=False)]
  found = {known[part] for part in joined if part in known}
  if len(found) != 1:
    raise ValueError(
      f"Neither {ARGUMENTS} nor the folder's name '{folder}' says which attack "
      f'this is; name it (`name=`, --attack), one of {", ".join(_KNOWN)}.'
    )
  return found.pop()


def _label_rule(source: Source, test: triggered.Stored) -> dict[str, Any]:
  """The rule that leads from true to attacked labels."""
  targets = np.unique(test.labels)
  if len(targets) == 1:
    target = int(targets[0])
    return dict(label_mode='all2one', target_label=target, label_shift=1)
  shifts = np.unique((test.labels - test.original) % source.num_classes)
  if len(shifts) == 1 and shifts[0]:
    shift = int(shifts[0])
    return dict(label_mode='all2all', target_label=None, label_shift=shift)
  raise ValueError(
    f'The labels of {source.folder} lead to {len(targets)} classes by '
    f'{len(shifts)} shifts; only all-to-one and all-to-all are known.'
  )


def _ratio(num_poisoned: int) -> float:
  """The benchmark's ratio that poisons so many of a block, else the share."""
  fitting = [r for r in RATIOS if max(1, int(r * BLOCK)) == num_poisoned]
  return fitting[-1] if fitting else num_poisoned / BLOCK
