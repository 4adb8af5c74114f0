"""Evaluation by counting: clean accuracy, attack success, robust accuracy.

Batches are padded and masked and only integers are summed, so that neither
the batch size nor the last batch can change a result. A prediction made of
non-finite logits is no class at all: `argmax` would call it class 0, which is
the usual target, and a broken model would look perfectly backdoored.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import checks, data, keys, types
from bdjax.eval import metrics


class _Prediction(NamedTuple):
  """What a model says of a batch."""

  logits: jax.Array
  classes: jax.Array
  finite: jax.Array


Stamp = Callable[..., jax.Array]  # (images float, key, index) -> images
Relabel = Callable[[jax.Array], jax.Array]  # labels -> labels


def count(
  classifier: types.Classifier,
  state: types.ModelState,
  images: types.ByteImages,
  labels: types.Labels,
  *,
  stamp: Stamp | None = None,
  relabel: Relabel | None = None,
  cross: Stamp | None = None,
  key: jax.Array | None = None,
  index: jax.Array | None = None,
  with_loss: bool = False,
  batch_size: int = 256,
) -> dict[str, jax.Array]:
  """Counts hits on clean and on triggered images; pure and jittable.

  The triggered set is relabel(y) ≠ y: everything but the target class for
  all-to-one, every image for all-to-all. Lift it over a stack by vmapping or
  mapping over `state`.

  Args:
    classifier: closed over, not traced.
    state: one model.
    images: uint8 [N, h, w, c].
    labels: int [N], true classes.
    stamp: (images float in [0, 1], key, index) -> images with the trigger.
    relabel: labels -> labels the trigger leads to.
    cross: as `stamp`, with another trigger than an image's own; needs a
      `stamp` beside it.
    key: typed key of the stamps; together with an image's index it fixes its
      stamp, however images are batched.
    index: int [N], positions in the data set the images were taken from;
      None = 0 … N − 1.
    with_loss: whether to sum cross-entropies on the way, from the same logits.
    batch_size: images per forward pass, static; does not change the result.

  Returns:
    int32 scalars clean_hits, clean_total, non_finite (images of which a
    counted view had a non-finite logit) and, with a `stamp`, attack_hits
    (prediction = relabel(y)), robust_hits (prediction = y), triggered_total.
    With `cross` also cross_hits (prediction = y, of all images) and
    cross_attack_hits (prediction = relabel(y), of the triggered set).
    With `with_loss` float32 sums too: clean_loss (towards y) and, with a
    `stamp`, attack_loss (towards relabel(y), of the triggered set).

  Raises:
    TypeError: if images are not uint8 or the key is not typed.
    ValueError: if lengths disagree, there is no image, or only a part of
      `stamp`, `relabel`, `key` is given.

  Example:
    >>> logits = jnp.asarray([[0., 1., 0.]])  # a model that always says 1
    >>> constant = types.Classifier(
    ...   init=None, features=None, info=None,
    ...   apply=lambda s, x, **_: (jnp.tile(s, (len(x), 1)), s))
    >>> counts = count(
    ...   constant, logits, np.zeros((4, 2, 2, 3), np.uint8), np.arange(4) % 3,
    ...   stamp=lambda x, key, index: x, relabel=jnp.ones_like,
    ...   key=jax.random.key(0))
    >>> int(counts['attack_hits']), int(counts['triggered_total'])
    (3, 3)
  """
  num = _check_arguments(images, labels, index, batch_size)
  _check_attack(stamp, relabel, key)
  if cross is not None and stamp is None:
    raise ValueError(
      '`cross` counts beside the attack; give `stamp`, `relabel` and `key` too.'
    )
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  index = jnp.arange(num) if index is None else jnp.asarray(index)

  def one_batch(rows_and_mask):
    rows, mask = rows_and_mask
    x, y = data.to_float(images[rows]), labels[rows]
    clean = _predict(classifier, state, x)
    counts, broken = _clean_counts(clean, y, mask), mask & ~clean.finite
    if with_loss:
      counts |= {'clean_loss': _loss_sum(clean.logits, y, mask)}
    if stamp is None or relabel is None or key is None:
      return counts | {'non_finite': jnp.sum(broken)}
    target = relabel(y)
    triggered = mask & (target != y)
    view = _apply_stamp(stamp, x, key, index[rows])
    stamped = _predict(classifier, state, view)
    counts |= _attack_counts(stamped, y, target, triggered)
    broken |= triggered & ~stamped.finite
    if with_loss:
      counts |= {'attack_loss': _loss_sum(stamped.logits, target, triggered)}
    if cross is not None:
      view = _apply_stamp(cross, x, keys.stream(key, 'cross'), index[rows])
      crossed = _predict(classifier, state, view)
      counts |= _cross_counts(crossed, y, target, mask, triggered)
      broken |= mask & ~crossed.finite
    return counts | {'non_finite': jnp.sum(broken)}

  per_batch = jax.lax.map(one_batch, _padded_rows(num, batch_size))
  return jax.tree.map(lambda n: jnp.sum(n, dtype=n.dtype), per_batch)


def evaluate(
  classifier: types.Classifier,
  state: types.ModelState,
  images: types.ByteImages,
  labels: types.Labels,
  *,
  stamp: Stamp | None = None,
  relabel: Relabel | None = None,
  cross: Stamp | None = None,
  key: jax.Array | None = None,
  index: jax.Array | None = None,
  batch_size: int = 256,
) -> dict[str, Any]:
  """The rates of one model: `rates(count(...))`, compiled.

  The program is kept for as long as the same functions are passed, so bind
  the attack's state once, outside of a loop over models.

  Args:
    classifier: the network, with what a defense deploys.
    state: one model.
    images: uint8 [N, h, w, c].
    labels: int [N], true classes.
    stamp: as in `count`.
    relabel: as in `count`.
    cross: as in `count`.
    key: as in `count`.
    index: as in `count`.
    batch_size: as in `count`.

  Returns:
    c_acc, asr, r_acc, n_clean_test, n_triggered_test, finite and, with a
    `cross`, cross_acc and cross_asr; see `rates`.

  Raises:
    TypeError: as `count`.
    ValueError: as `count`.

  Example:
    >>> logits = jnp.asarray([[0., 1., 0.]])  # a model that always says 1
    >>> constant = types.Classifier(
    ...   init=None, features=None, info=None,
    ...   apply=lambda s, x, **_: (jnp.tile(s, (len(x), 1)), s))
    >>> evaluate(constant, logits, np.zeros((4, 2, 2, 3), np.uint8),
    ...          np.arange(4) % 3)['c_acc']
    0.25
  """
  program = _compiled(classifier, stamp, relabel, cross, batch_size)
  return metrics.rates(program(state, images, labels, key, index))


@functools.lru_cache(maxsize=8)
def _compiled(classifier, stamp, relabel, cross, batch_size):
  """The jitted `count` of one set of functions."""

  @jax.jit
  def program(state, images, labels, key, index):
    return count(
      classifier,
      state,
      images,
      labels,
      stamp=stamp,
      relabel=relabel,
      cross=cross,
      key=key,
      index=index,
      batch_size=batch_size,
    )

  return program


def _padded_rows(num: int, batch_size: int):
  """Rows [n_batches, b], the last one repeated, and which of them count."""
  size = min(batch_size, num)
  rows = np.arange(-(-num // size) * size).reshape(-1, size)
  return jnp.asarray(np.minimum(rows, num - 1)), jnp.asarray(rows < num)


def _predict(classifier, state, images):
  """Logits, their largest, and whether all of an image's are finite."""
  logits, _ = classifier.apply(state, images)
  finite = jnp.all(jnp.isfinite(logits), axis=-1)
  return _Prediction(logits, jnp.argmax(logits, axis=-1), finite)


def _loss_sum(logits, labels, mask):
  """Sum of the cross-entropies of the images that count."""
  loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(jnp.where(mask, loss, 0.0))


def _clean_counts(clean, y, mask):
  """Counts of one batch without its trigger."""
  return {
    'clean_hits': _hits(clean, y, mask),
    'clean_total': jnp.sum(mask),
  }


def _attack_counts(stamped, y, target, triggered):
  """Counts of one batch with its trigger."""
  return {
    'attack_hits': _hits(stamped, target, triggered),
    'robust_hits': _hits(stamped, y, triggered),
    'triggered_total': jnp.sum(triggered),
  }


def _cross_counts(crossed, y, target, mask, triggered):
  """Counts of one batch with triggers that should not work."""
  return {
    'cross_hits': _hits(crossed, y, mask),
    'cross_attack_hits': _hits(crossed, target, triggered),
  }


def _hits(view, wanted, mask):
  """Images that count and are given the wanted class."""
  return jnp.sum(mask & view.finite & (view.classes == wanted))


def _apply_stamp(stamp, images, key, index):
  """Stamps a batch and checks that its shape has survived."""
  stamped = stamp(images, key, index)
  if stamped.shape != images.shape:
    raise ValueError(
      f'`stamp` turned images {images.shape} into {stamped.shape}; a trigger '
      'keeps the shape of its images.'
    )
  return stamped


def _check_arguments(images, labels, index, batch_size) -> int:
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
