"""Attacks known by their images alone: there is no trigger to apply.

What others publish of an attacked model are often its triggered images, not
what made them. `poison` then puts the stored training images where they were,
and `stamp` looks the stored version of a test image up by its index. Whether
an image is the one that its index names is told from its pixels: for any other
image there is no triggered version, and `stamp` says so. Under a trace, where
nothing can be raised, such images become NaN, which `eval` counts as no class.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import poisoning
from bdjax.attacks import relabel as relabel_lib

_SEED = 20  # of the weights behind fingerprints; any will do
_CHUNK = 1000  # images whose bytes are widened at a time


class Bank(NamedTuple):
  """Triggered images of one split.

  Attributes:
    index: int [n], positions in the split.
    images: uint8 [n, h, w, c].
    labels: int [n], what the attacker calls them.
  """

  index: np.ndarray
  images: np.ndarray
  labels: np.ndarray


def from_images(
  info: types.AttackInfo,
  relabel: relabel_lib.Relabel,
  kind: np.ndarray,
  train: Bank,
  test: Bank,
  test_images: np.ndarray,
) -> types.Attack:
  """Makes an attack of stored images.

  Args:
    info: static facts.
    relabel: the label rule.
    kind: int8 [N], which training images are poisoned or cover.
    train: the stored ones among the training images.
    test: the stored ones among the test images.
    test_images: uint8 [M, h, w, c], the whole test set without the trigger.

  Returns:
    The attack. Its state holds all stored images; `init` takes the training
    set they belong to and no randomness.

  Raises:
    TypeError: if images are not uint8.
    ValueError: if shapes or positions disagree.

  Example:
    >>> clean = np.zeros((3, 2, 2, 1), np.uint8)
    >>> bank = Bank(np.array([2]), clean[:1] + 255, np.array([0]))
    >>> info = types.AttackInfo(
    ...   name='mine', label_mode='all2one', target_label=0, poison_ratio=0.3)
    >>> attack = from_images(
    ...   info, relabel_lib.all2one(0, 2), np.array([0, 0, 1], np.int8),
    ...   bank, bank, clean)
    >>> state = attack.init(jax.random.key(0), clean, np.ones(3, int))
    >>> image = jnp.zeros((1, 2, 2, 1))
    >>> float(attack.stamp(state, image, None, jnp.array([2])).mean())
    1.0
  """
  kind = np.asarray(kind, np.int8)
  checks.byte_images(test_images=test_images)
  _check_bank('train', train, len(kind), test_images)
  _check_bank('test', test, len(test_images), test_images)
  unknown = np.setdiff1d(np.flatnonzero(kind), train.index)
  if unknown.size:
    raise ValueError(
      f'`kind` marks training image {unknown[0]}, which `train` does not hold '
      f'({unknown.size} such); a mark needs an image.'
    )
  trigger = {
    'train': _bank(train, len(kind)),
    'test': _bank(test, len(test_images)),
    'fingerprints': _fingerprints(np.asarray(test_images)),
  }

  def init_fn(key, images, labels):
    del key
    if len(labels) != len(kind) or images.shape[1:] != test_images.shape[1:]:
      raise ValueError(
        f'The attack stored images of {len(kind)} training images of shape '
        f'{test_images.shape[1:]}, got {len(labels)} of {images.shape[1:]}; '
        'give the training set it was imported with.'
      )
    return types.AttackState(
      trigger=jax.tree.map(jnp.asarray, trigger), kind=jnp.asarray(kind)
    )

  return types.Attack(
    init=init_fn,
    poison=_poison,
    stamp=_stamper(info.name),
    relabel=relabel.apply,
    update=poisoning.keep_trigger,
    objective=poisoning.cross_entropy,
    info=info,
  )


def _poison(state, batch, key):
  """Stored images and labels in the rows that have them."""
  del key
  bank, index = state.trigger['train'], batch['index']
  if not len(bank['images']):
    raise checks.Unsupported(
      'No poisoned training images were stored with this attack, so the set '
      'that its model was trained on is not known.'
    )
  slot = bank['slot'].at[index].get(mode='fill', fill_value=-1)
  kind = state.kind.at[index].get(mode='fill', fill_value=types.CLEAN)
  marked = (slot >= 0) & (kind != types.CLEAN)
  stored = bank['images'][slot].astype(jnp.float32) / 255
  labels = batch['label']
  return batch | {
    'image': jnp.where(marked[:, None, None, None], stored, batch['image']),
    'label': jnp.where(marked, bank['labels'][slot], labels),
    'kind': kind,
  }


def _stamper(name: str):
  """The `stamp` of an attack, by looking up."""

  def stamp_fn(state, images, key, index):
    del key
    checks.unit_images(images=images)
    bank = state.trigger['test']
    index = jnp.asarray(index)
    levels = jnp.round(images * 255).astype(jnp.uint8)
    prints = state.trigger['fingerprints']
    there = prints.at[index].get(mode='fill', fill_value=0)
    slot = bank['slot'].at[index].get(mode='fill', fill_value=-1)
    known = (there == _fingerprints(levels)) & (slot >= 0)
    _check_known(name, known, index)
    stored = bank['images'][slot].astype(images.dtype) / 255
    return jnp.where(known[:, None, None, None], stored, jnp.nan)

  return stamp_fn


def _check_known(name: str, known, index) -> None:
  """Raises where an image has no stored version and that can be seen."""
  if checks.is_concrete(known) and not bool(np.all(known)):
    row = int(np.argmin(np.asarray(known)))
    raise checks.Unsupported(
      f"The attack '{name}' was imported as images and has no trigger for "
      f'others: there is no stored version of the image given as '
      f'{int(index[row])}. Only test images, unchanged and under their own '
      'index, can be triggered. What poisons images of its own '
      '(re-activation, retuning) needs an attack trained by launch.attack.'
    )


def _bank(bank: Bank, num_examples: int) -> dict[str, Any]:
  """Images, labels, and each position's row among them or −1."""
  slot = np.full(num_examples, -1, np.int32)
  slot[bank.index] = np.arange(len(bank.index))
  labels = np.asarray(bank.labels, np.int32)
  return {'images': np.asarray(bank.images), 'labels': labels, 'slot': slot}


def _fingerprints(images):
  """uint32 [b]: a sum of bytes under fixed odd weights, modulo 2³²."""
  size = int(np.prod(images.shape[1:]))
  weights = np.random.default_rng(_SEED).integers(
    0, 2**31, size, dtype=np.uint32
  )
  flat = images.reshape(len(images), size)
  weights = 2 * weights + 1
  if isinstance(images, np.ndarray):
    chunks = np.split(flat, range(_CHUNK, len(flat), _CHUNK))
    return np.concatenate([c.astype(np.uint32) @ weights for c in chunks])
  flat = flat.astype(jnp.uint32) * jnp.asarray(weights)[None]
  return jnp.sum(flat, axis=1, dtype=jnp.uint32)


def _check_bank(name: str, bank: Bank, num_examples: int, like) -> None:
  checks.byte_images(**{f'{name}.images': bank.images})
  sizes = {len(bank.index), len(bank.images), len(bank.labels)}
  if len(sizes) > 1 or bank.images.shape[1:] != like.shape[1:]:
    raise ValueError(
      f'`{name}` has {len(bank.images)} images of shape '
      f'{bank.images.shape[1:]}, {len(bank.labels)} labels and '
      f'{len(bank.index)} positions; expected one each of shape '
      f'{like.shape[1:]}.'
    )
  if (
    len(bank.index)
    and not 0 <= min(bank.index) <= max(bank.index) < num_examples
  ):
    raise ValueError(
      f'`{name}.index` reaches from {min(bank.index)} to {max(bank.index)}; '
      f'there are {num_examples} images.'
    )
