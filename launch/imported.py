"""Attacks that came as images: what an artefact keeps, and the way back."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bdjax import attacks, data, keys, types, zoo
from bdjax.attacks import stored

Poison = zoo.backdoorbench.Poison


def is_imported(card: zoo.Card) -> bool:
  """Whether a model was imported, so that its attack is known by images."""
  return 'imported' in card.hparams


def to_arrays(poison: Poison) -> dict[str, np.ndarray]:
  """The arrays of an artefact: all stored images, and what is poisoned."""
  found = {'kind': poison.kind}
  for split, part in (('train', poison.train), ('test', poison.test)):
    found |= {f'{split}/{name}': x for name, x in part._asdict().items()}
  return found


def attack_of(
  facts: Mapping[str, Any], arrays: Mapping[str, Any], dataset: data.Dataset
) -> tuple[types.Attack, types.AttackState]:
  """The attack and its state.

  Args:
    facts: those of `facts_of`.
    arrays: those of `to_arrays`.
    dataset: the data it was imported with.
  """
  relabel = attacks.relabel.make_relabel(
    facts['label_mode'],
    dataset.spec.num_classes,
    facts['target_label'],
    facts['label_shift'],
  )
  info = types.AttackInfo(
    name=facts['attack'],
    label_mode=facts['label_mode'],
    target_label=facts['target_label'],
    poison_ratio=facts['poison_ratio'],
    clean_label=facts['clean_label'],
    cover_ratio=facts['cover_ratio'],
  )
  attack = stored.from_images(
    info,
    relabel,
    arrays['kind'],
    _bank(arrays, 'train'),
    _bank(arrays, 'test'),
    np.asarray(dataset.test.images),
  )
  train = dataset.train
  return attack, attack.init(keys.root(0), train.images, train.labels)


def facts_of(poison: Poison) -> dict[str, Any]:
  """What there is to know of the attack, as plain data."""
  cover = float(np.mean(poison.kind == types.COVER))
  return {
    'attack': poison.name,
    'label_mode': poison.label_mode,
    'target_label': poison.target_label,
    'label_shift': poison.label_shift,
    'poison_ratio': poison.poison_ratio,
    'clean_label': poison.clean_label,
    'cover_ratio': cover or None,
  }


def content_of(arrays: Mapping[str, Any]) -> str:
  """SHA-256 of names, shapes, dtypes and values."""
  found = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    found.update(f'{name} {array.dtype} {array.shape} '.encode())
    found.update(array.tobytes())
  return found.hexdigest()


def _bank(arrays: Mapping[str, Any], split: str) -> stored.Bank:
  return stored.Bank(*(arrays[f'{split}/{n}'] for n in stored.Bank._fields))
