"""Feeds: where a phase's batches come from.

A feed stays on the device as uint8; which rows make up a step is a function
of the key and the step's number, so that neither chunking nor a restart can
change it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from bdjax import checks, keys, types


@types.pytree
class Feed:
  """Images a phase may read.

  Attributes:
    images: uint8 [N, h, w, c].
    labels: int32 [N].
    index: int32 [n], the rows of `images` that the phase may see.
  """

  images: UInt8[Array, 'N h w c']
  labels: Int[Array, ' N']
  index: Int[Array, ' n']


def make_feed(images, labels, index=None) -> Feed:
  """Puts a split, or the rows `index` of it, on the device.

  Args:
    images: uint8 [N, h, w, c].
    labels: integers [N].
    index: rows that may be seen; None = all.

  Returns:
    The feed.

  Raises:
    ValueError: if lengths disagree or nothing is left to see.
  """
  if len(images) != len(labels):
    raise ValueError(
      f'{len(images)} images but {len(labels)} labels; give one label each.'
    )
  index = jnp.arange(len(images)) if index is None else jnp.asarray(index)
  if index.size == 0:
    raise ValueError(
      'A feed needs at least one row; raise the ratio or `num_train`.'
    )
  return Feed(
    images=jnp.asarray(images),
    labels=jnp.asarray(labels, jnp.int32),
    index=index.astype(jnp.int32),
  )


def split_feed(feed: Feed, share: float = 0.2) -> tuple[Feed, Feed]:
  """Splits what a feed may see into a part to fit on and one held out.

  The choice depends on nothing but the number of rows: all methods that get
  the same reserve hold out the same images of it.

  Args:
    feed: what to split; `index` may have leading axes.
    share: held-out share, at least one row; what is left keeps one as well.

  Returns:
    (fit, held out).

  Raises:
    ValueError: if there are fewer than two rows or the share is not in [0, 1].
  """
  checks.unit_interval(share=share)
  n = feed.index.shape[-1]
  if n < 2:
    raise ValueError(
      f'{n} row cannot be split into fitting and held-out images; raise the '
      'clean ratio.'
    )
  order = np.random.default_rng(0).permutation(n)
  cut = min(max(round(share * n), 1), n - 1)
  rows = lambda part: dataclasses.replace(
    feed, index=feed.index[..., np.sort(part)]
  )
  return rows(order[cut:]), rows(order[:cut])


def batch_size(phase: types.Phase, n: int) -> int:
  """Examples per step: an epoch smaller than a batch is one batch."""
  return min(phase.batch_size, n)


def steps_per_epoch(phase: types.Phase, n: int) -> int:
  """Steps of one pass over n examples."""
  b = batch_size(phase, n)
  return n // b if phase.drop_last else -(-n // b)


def batch_rows(
  key: jax.Array,
  start: jax.Array | int,
  length: int,
  n: int,
  size: int,
  per_epoch: int,
) -> Int[Array, 'length size']:
  """Which of n rows make up the steps start … start + length − 1.

  Every epoch is a permutation of its own, keyed by its number. Where
  `per_epoch`·`size` > n, an epoch's last batch wraps round to its beginning.

  Args:
    key: key of the order.
    start: first step, may be traced.
    length: number of steps, static.
    n: rows to choose from.
    size: rows per step.
    per_epoch: steps per epoch.

  Returns:
    int32 [length, size].
  """
  first = jnp.asarray(start) // per_epoch
  num_epochs = (length + per_epoch - 2) // per_epoch + 1
  # Sorting random bits is a permutation at a third of jax.random's compile
  # time; ties, rare at 32 bits, fall by position.
  permute = lambda e: jnp.argsort(
    jax.random.bits(keys.at(key, first + e), (n,))
  )
  table = jax.vmap(permute)(jnp.arange(num_epochs))
  table = jnp.concatenate([table, table], axis=1)[:, : per_epoch * size]
  table = table.reshape(num_epochs, per_epoch, size)
  steps = start + jnp.arange(length)
  return table[steps // per_epoch - first, steps % per_epoch]


def fetch(
  feed: Feed,
  rows: jax.Array,
  key: jax.Array,
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None,
  mask: jax.Array | None = None,
) -> types.Batch:
  """One batch: gathered, in [0, 1], augmented per example.

  Args:
    feed: where from.
    rows: int [b], positions in `feed.index`.
    key: the step's augmentation key.
    augment: (images, keys [b]) -> images, or None.
    mask: bool [b], False where an example of this epoch comes again to fill
      the batch, so that counts can leave it out; None = all True.

  Returns:
    {'image' [b, h, w, c], 'label' [b], 'index' [b], 'mask' [b]}.
  """
  index = feed.index[rows]
  images = feed.images[index].astype(jnp.float32) / 255
  if augment is not None:
    images = augment(images, keys.per_example(key, index))
  return {
    'image': images,
    'label': feed.labels[index],
    'index': index,
    'mask': jnp.ones(index.shape, bool) if mask is None else mask,
  }
