"""What models are shown: batches of test images and their triggered views.

A program that is given an attack's functions belongs to that attack. Stamped
beforehand, its images go through one program that all attacks share.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, data, keys, types

Stamp = Callable[..., jax.Array]  # (images float, key, index) -> images
Relabel = Callable[[jax.Array], jax.Array]  # labels -> labels


class Triggered(NamedTuple):
  """Test images as an attack shows them, the same for every model.

  Attributes:
    images: float [N, h, w, c] in [0, 1], with the trigger.
    targets: int [N], classes the trigger leads to.
    crossed: as `images`, with another trigger than an image's own; None where
      the attack has no such triggers.
  """

  images: jax.Array
  targets: jax.Array
  crossed: jax.Array | None = None


def triggered(
  images: types.ByteImages,
  labels: types.Labels,
  *,
  stamp: Stamp,
  relabel: Relabel,
  key: jax.Array,
  cross: Stamp | None = None,
  batch_size: int = 256,
) -> Triggered:
  """Stamps a test set, once for all models it will be shown to.

  Args:
    images: uint8 [N, h, w, c].
    labels: int [N], true classes.
    stamp: as in `count`.
    relabel: as in `count`.
    key: as in `count`.
    cross: as in `count`.
    batch_size: images stamped at a time; does not change the result.

  Returns:
    What `count` takes in place of these functions, 4 bytes per pixel.

  Raises:
    TypeError: as `count`.
    ValueError: as `count`.

  Example:
    >>> shown = triggered(
    ...   np.zeros((4, 2, 2, 3), np.uint8), np.arange(4) % 3,
    ...   stamp=lambda x, key, index: x + 1, relabel=jnp.ones_like,
    ...   key=jax.random.key(0))
    >>> shown.images.shape, shown.targets.tolist()
    ((4, 2, 2, 3), [1, 1, 1, 1])
  """
  num = check_arguments(images, labels, None, batch_size)
  _check_attack(stamp, relabel, key)

  @jax.jit
  def stamped(images, labels):
    def one_batch(rows):
      x = data.to_float(images[rows])
      other = None
      if cross is not None:
        other = apply_stamp(cross, x, keys.stream(key, 'cross'), rows)
      return apply_stamp(stamp, x, key, rows), other

    rows, _ = padded_rows(num, batch_size)
    views = jax.lax.map(one_batch, rows)
    flat = lambda x: x.reshape(-1, *x.shape[2:])[:num]
    shown, crossed = jax.tree.map(flat, views)
    return Triggered(shown, relabel(labels), crossed)

  return stamped(jnp.asarray(images), jnp.asarray(labels))


def padded_rows(num: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
  """Rows [n_batches, b], the last one repeated, and which of them count."""
  size = min(batch_size, num)
  rows = np.arange(-(-num // size) * size).reshape(-1, size)
  return jnp.asarray(np.minimum(rows, num - 1)), jnp.asarray(rows < num)


def apply_stamp(stamp: Stamp, images, key, index) -> jax.Array:
  """Stamps a batch and checks that its shape has survived."""
  stamped = stamp(images, key, index)
  if stamped.shape != images.shape:
    raise ValueError(
      f'`stamp` turned images {images.shape} into {stamped.shape}; a trigger '
      'keeps the shape of its images.'
    )
  return stamped


def check_arguments(images, labels, index, batch_size) -> int:
  """Number of images, after refusing what cannot be evaluated."""
  checks.byte_images(images=images)
  checks.positive(batch_size=batch_size)
  num = images.shape[0]
  if num == 0:
    raise ValueError('`images` holds 0 images; there is nothing to evaluate.')
  for name, value in (('labels', labels), ('index', index)):
    if value is not None and np.shape(value) != (num,):
      raise ValueError(
        f'`{name}` has shape {np.shape(value)}; expected ({num},), one per '
        'image.'
      )
  return num


def check_views(shown, stamp, relabel, cross, key, images) -> None:
  """Refuses an attack given twice, or half of one."""
  if shown is None:
    _check_attack(stamp, relabel, key)
    if cross is not None and stamp is None:
      raise ValueError(
        '`cross` counts beside the attack; give `stamp`, `relabel` and `key` '
        'too.'
      )
    return
  if relabel is not None or cross is not None:
    raise ValueError(
      '`shown` holds targets and crossed images already; leave out `relabel` '
      'and `cross`, or make it anew with eval.triggered.'
    )
  if (stamp is None) != (key is None):
    raise ValueError('`stamp` and `key` belong together; give both or none.')
  if np.shape(shown.images) != np.shape(images):
    raise ValueError(
      f'`shown` has images {np.shape(shown.images)} beside `images` '
      f'{np.shape(images)}; make it of the same ones with eval.triggered.'
    )


def _check_attack(stamp, relabel, key) -> None:
  """Refuses half an attack."""
  given = [stamp is not None, relabel is not None, key is not None]
  if any(given) and not all(given):
    raise ValueError(
      '`stamp`, `relabel` and `key` belong together; give all three to '
      'measure an attack, or none for clean accuracy alone.'
    )
  if key is not None:
    checks.typed_key(key=key)
