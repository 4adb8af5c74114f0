"""Pools: the images that a re-activation attacker holds and learns from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, keys, types


class Pool(NamedTuple):
  """Images a re-activation attack learns from.

  Attributes:
    images: uint8 [size, h, w, c].
    labels: int32 [size], the class each image is to be sent to, unless its
      maker says otherwise.
    index: int32 [size], positions in the training set; ascending, or so in
      either of its two parts.
  """

  images: np.ndarray
  labels: np.ndarray
  index: np.ndarray


def triggered(
  key: jax.Array,
  attack: types.Attack,
  attack_state: types.AttackState,
  images,
  labels,
  size: int,
) -> Pool:
  """Training images with the trigger, and the attack's targets for them.

  Drawn from all images that the trigger leads away from their class; the
  official code draws from the stored poisoned ones, which clean-label attacks
  do not have.

  Args:
    key: typed key; `clean` draws the same images from the same key.
    attack: the attack that was implanted.
    attack_state: its state after training.
    images: training images, uint8 [N, h, w, c].
    labels: their true classes, int [N].
    size: images to draw.

  Returns:
    The pool; triggered images are rounded to bytes.

  Raises:
    ValueError: if the trigger leads away fewer than `size` images.
  """
  pool = clean(key, attack, images, labels, size)
  return pool._replace(images=_stamped(key, attack, attack_state, pool))


def clean(
  key: jax.Array, attack: types.Attack, images, labels, size: int
) -> Pool:
  """The same training images without the trigger.

  Args:
    key: typed key.
    attack: says which class each image is to be sent to.
    images: training images, uint8 [N, h, w, c].
    labels: their true classes, int [N].
    size: images to draw.

  Returns:
    The pool: images whose target is not their own class.

  Raises:
    ValueError: if there are fewer than `size` such images.
  """
  return _led_away(key, attack, images, labels, pool_size=size)


def retuning(
  key: jax.Array,
  attack: types.Attack,
  attack_state: types.AttackState,
  images,
  labels,
  *,
  split_ratio: float,
  poison_num: int,
) -> Pool:
  """Clean training images, a few of which gave way to triggered ones.

  The triggered images come first, labelled with the attack's targets; all
  others have their true labels. How many images there are does not depend on
  `poison_num`; under one key a larger one replaces some more clean images and
  keeps the triggered ones of a smaller.

  Args:
    key: typed key.
    attack: the attack that was implanted.
    attack_state: its state after training.
    images: training images, uint8 [N, h, w, c].
    labels: their true classes, int [N].
    split_ratio: images of the pool / N, rounded.
    poison_num: rows that are triggered, from 0 to all.

  Returns:
    The pool.

  Raises:
    ValueError: for a ratio outside (0, 1] or one that leaves no image, or more
      triggered images than there are in the pool or that the trigger leads
      away from their class.
  """
  checks.typed_key(key=key)
  checks.byte_images(images=images)
  checks.fraction(split_ratio=split_ratio)
  checks.non_negative(poison_num=poison_num)
  size = round(split_ratio * len(labels))
  if size == 0:
    raise ValueError(
      f'`split_ratio={split_ratio}` of {len(labels)} images is none; use '
      f'split_ratio={1 / len(labels):.2g} or more.'
    )
  if poison_num > size:
    raise ValueError(
      f'{poison_num} triggered images in a pool of {size}; use '
      f'poison_num={size} or fewer, or raise split_ratio={split_ratio}.'
    )
  rows = _draw(key, len(labels), size)[poison_num:]
  honest = _rows(images, labels, rows)
  if not poison_num:
    return honest
  poisoned = _led_away(key, attack, images, labels, poison_num=poison_num)
  stamped = _stamped(key, attack, attack_state, poisoned)
  return _join(poisoned._replace(images=stamped), honest)


def qra(
  key: jax.Array,
  attack: types.Attack,
  attack_state: types.AttackState,
  images,
  labels,
  *,
  num_clean: int,
  num_poisoned: int,
) -> Pool:
  """Clean training images, then triggered ones, all with their true labels.

  The triggered ones are those of `triggered`: of the classes that the trigger
  leads away from.

  Args:
    key: typed key.
    attack: the attack that was implanted.
    attack_state: its state after training.
    images: training images, uint8 [N, h, w, c].
    labels: their true classes, int [N].
    num_clean: clean images.
    num_poisoned: triggered images.

  Returns:
    The pool, of num_clean + num_poisoned images.

  Raises:
    ValueError: for a non-positive number, or more images than there are.
  """
  checks.typed_key(key=key)
  checks.byte_images(images=images)
  checks.positive(num_clean=num_clean, num_poisoned=num_poisoned)
  if num_clean > len(labels):
    raise ValueError(
      f'{num_clean} clean images of {len(labels)}; use '
      f'num_clean={len(labels)} or fewer.'
    )
  honest = _rows(images, labels, _draw(key, len(labels), num_clean))
  poisoned = _led_away(key, attack, images, labels, num_poisoned=num_poisoned)
  stamped = _stamped(key, attack, attack_state, poisoned)
  truth = np.asarray(labels, np.int32)[poisoned.index]
  return _join(honest, poisoned._replace(images=stamped, labels=truth))


def _led_away(key, attack, images, labels, **named) -> Pool:
  """Clean images whose target is not their class; how many is `named`."""
  checks.typed_key(key=key)
  checks.byte_images(images=images)
  checks.positive(**named)
  ((name, size),) = named.items()
  labels = np.asarray(labels, np.int32)
  target = np.asarray(attack.relabel(jnp.asarray(labels)), np.int32)
  eligible = np.flatnonzero(target != labels)
  if eligible.size == 0:
    raise ValueError(
      f'The attack {attack.info.name!r} leads each of the {len(labels)} images '
      'to its own class, so there is nothing to re-activate; choose another '
      f'target than target_label={attack.info.target_label}, or other images.'
    )
  if size > eligible.size:
    raise ValueError(
      f'A pool of {size} images from {eligible.size} that the attack leads '
      f'away from their class; use {name}={eligible.size} or fewer.'
    )
  bits = jax.random.bits(keys.stream(key, 'pool'), (eligible.size,))
  order = np.argsort(np.asarray(bits), kind='stable')[:size]
  index = np.sort(eligible[order]).astype(np.int32)
  return Pool(np.asarray(images[index]), target[index], index)


def _stamped(key, attack, attack_state, pool) -> np.ndarray:
  """The images of a pool with the trigger, rounded to bytes."""
  x = jnp.asarray(pool.images, jnp.float32) / 255
  stamp_key = keys.stream(key, 'trigger')
  stamped = attack.stamp(attack_state, x, stamp_key, jnp.asarray(pool.index))
  return np.rint(np.asarray(stamped) * 255).clip(0, 255).astype(np.uint8)


def _draw(key, n, size) -> np.ndarray:
  """`size` of n rows without replacement, in random order."""
  bits = jax.random.bits(keys.stream(key, 'clean'), (n,))
  return np.argsort(np.asarray(bits), kind='stable')[:size]


def _rows(images, labels, rows) -> Pool:
  """These rows of a data set, in ascending order, with their own labels."""
  index = np.sort(rows).astype(np.int32)
  truth = np.asarray(labels, np.int32)[index]
  return Pool(np.asarray(images[index]), truth, index)


def _join(first, second) -> Pool:
  """One pool after the other."""
  return Pool(*map(np.concatenate, zip(first, second, strict=True)))
