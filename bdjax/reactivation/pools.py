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
    labels: int32 [size], the class each image is to be sent to.
    index: int32 [size], positions in the training set, ascending.
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
  x = jnp.asarray(pool.images, jnp.float32) / 255
  stamp_key = keys.stream(key, 'trigger')
  stamped = attack.stamp(attack_state, x, stamp_key, jnp.asarray(pool.index))
  stamped = np.rint(np.asarray(stamped) * 255).clip(0, 255).astype(np.uint8)
  return pool._replace(images=stamped)


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
  checks.typed_key(key=key)
  checks.byte_images(images=images)
  checks.positive(size=size)
  labels = np.asarray(labels, np.int32)
  target = np.asarray(attack.relabel(jnp.asarray(labels)), np.int32)
  eligible = np.flatnonzero(target != labels)
  if size > eligible.size:
    raise ValueError(
      f'A pool of {size} images from {eligible.size} that the attack leads '
      f'away from their class; use pool_size={eligible.size} or fewer.'
    )
  bits = jax.random.bits(keys.stream(key, 'pool'), (eligible.size,))
  order = np.argsort(np.asarray(bits), kind='stable')[:size]
  index = np.sort(eligible[order]).astype(np.int32)
  return Pool(np.asarray(images[index]), target[index], index)
