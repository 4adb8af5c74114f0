"""Packs: unlike attacks on one data set, trained as one stack.

An attack that poisons a fixed subset before augmentation is, to the training,
some images and labels in place of others. `pack` makes these once for each of
several attacks. What is left differs in arrays alone, so that one program
trains all of them, whatever their triggers and ratios.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, tree, types
from bdjax.attacks import poisoning
from bdjax.attacks.triggers import levels

_ROWS = 256  # images stamped at a time
_NO_SLOT = -1


class Pack(NamedTuple):
  """Several attacks as one.

  Attributes:
    attack: what `training.attack_phases` takes; it stamps no further images.
    states: a stack of states, one per attack, for `Carry.extra`; the trigger
      of each is {'images': uint8 [n, h, w, c], 'labels': int32 [n]}, poisoned
      ones, and 'slot': int32 [N], where an example's lies among them, −1 for
      nowhere. n is the number of the attack that poisons most.
  """

  attack: types.Attack
  states: types.AttackState


def pack(
  members: Sequence[tuple[types.Attack, types.AttackState]],
  images: types.ByteImages,
  labels: types.Labels,
  *,
  key: jax.Array,
) -> Pack:
  """Makes the poisoned images of several attacks.

  Trained on the pack, each member is the model that its attack alone makes from
  the same keys. A member's models are tested with the attack's own `stamp` and
  state.

  Args:
    members: (attack, state) of each, the state from `attack.init` on the same
      training set.
    images: uint8 [N, h, w, c], the training set.
    labels: int [N].
    key: typed key of triggers that are random; these are drawn once here, where
      single training draws them in every epoch.

  Returns:
    The pack.

  Raises:
    ValueError: if there is no member, one does not poison a fixed subset before
      augmentation by plain training, its images are not on the 8-bit grid, or
      the state is of another training set.

  Example:
    >>> from bdjax import attacks, data
    >>> spec, train, _ = data.load('synthetic', num_train=40)
    >>> two = [attacks.badnets(spec), attacks.blended(spec)]
    >>> members = [(a, a.init(jax.random.key(0), *train)) for a in two]
    >>> packed = pack(members, *train, key=jax.random.key(1))
    >>> packed.states.trigger['images'].shape
    (2, 4, 8, 8, 3)
  """
  checks.typed_key(key=key)
  checks.byte_images(images=images)
  if not members:
    raise ValueError('`members=[]` holds no attack; give one at least.')
  banks = [_bank(*one, images, labels, key) for one in members]
  most = max(len(bank['images']) for bank in banks)
  states = [
    types.AttackState(trigger=_padded(bank, most), kind=jnp.asarray(state.kind))
    for bank, (_, state) in zip(banks, members, strict=True)
  ]
  return Pack(_attack(), tree.stack(states))


def _bank(attack, state, images, labels, key) -> dict[str, np.ndarray]:
  """The poisoned images of one attack, in the order of the training set."""
  _check(attack, state, images)
  rows = np.flatnonzero(np.asarray(state.kind) == types.POISONED)
  parts = [
    attack.poison(
      state,
      {
        'image': levels.to_image(jnp.asarray(np.asarray(images[part]))),
        'label': jnp.asarray(np.asarray(labels)[part], jnp.int32),
        'index': jnp.asarray(part),
      },
      key,
    )
    for part in np.split(rows, range(_ROWS, len(rows), _ROWS))
  ]
  stamped = 255 * np.concatenate([np.asarray(part['image']) for part in parts])
  kept = np.rint(stamped)
  if np.abs(stamped - kept).max(initial=0) > 1e-2:
    raise ValueError(
      f"Images of '{attack.info.name}' are not on the 8-bit grid, so a pack "
      'would change them; train it on its own.'
    )
  slot = np.full(len(images), _NO_SLOT, np.int32)
  slot[rows] = np.arange(len(rows), dtype=np.int32)
  return {
    'images': kept.astype(np.uint8),
    'labels': np.concatenate([np.asarray(part['label']) for part in parts]),
    'slot': slot,
  }


def _check(attack: types.Attack, state: types.AttackState, images) -> None:
  """Refuses attacks that are more than other images and labels."""
  info = attack.info
  if (
    not info.fixed_subset
    or info.order != 'poison_augment'
    or attack.update is not poisoning.keep_trigger
    or attack.objective is not poisoning.cross_entropy
  ):
    raise ValueError(
      f"'{info.name}' takes part in the training, so it cannot be packed; "
      'train it on its own.'
    )
  if state.kind.shape != (len(images),):
    raise ValueError(
      f"The state of '{info.name}' has `kind` of shape {state.kind.shape}, the "
      f'training set {len(images)} images; give a single state made by '
      '`init` on this training set.'
    )


def _padded(bank: dict[str, np.ndarray], most: int) -> dict[str, jax.Array]:
  """The bank with room for the largest one's images."""
  room = most - len(bank['images'])
  grow = lambda x: np.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1))
  bank = {
    **bank,
    'images': grow(bank['images']),
    'labels': grow(bank['labels']),
  }
  return jax.tree.map(jnp.asarray, bank)


def _attack() -> types.Attack:
  """The attack that puts images of a bank in."""

  def poison(state, batch, key):
    del key
    bank, index = state.trigger, batch['index']
    slot = bank['slot'].at[index].get(mode='fill', fill_value=_NO_SLOT)
    is_poisoned = slot != _NO_SLOT
    stamped = levels.to_image(bank['images'][slot])
    return batch | {
      'image': jnp.where(
        is_poisoned[:, None, None, None], stamped, batch['image']
      ),
      'label': jnp.where(is_poisoned, bank['labels'][slot], batch['label']),
      'kind': jnp.where(is_poisoned, types.POISONED, types.CLEAN).astype(
        jnp.int8
      ),
    }

  def refuse(*args):
    raise ValueError(
      'A pack holds the images of its training set alone; use the `init`, '
      '`stamp` and `relabel` of the attacks it was made of.'
    )

  info = types.AttackInfo(
    name='pack', label_mode='all2one', target_label=None, poison_ratio=None
  )
  return types.Attack(
    init=refuse,
    poison=poison,
    stamp=refuse,
    relabel=refuse,
    update=poisoning.keep_trigger,
    objective=poisoning.cross_entropy,
    info=info,
  )
