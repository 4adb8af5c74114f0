"""Evaluation by counting: clean accuracy, attack success, robust accuracy.

Batches are padded and masked and only integers are summed, so that neither
the batch size nor the last batch can change a result. A prediction made of
non-finite logits is no class at all: `argmax` would call it class 0, which is
the usual target, and a broken model would look perfectly backdoored.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import data, keys, types
from bdjax.eval import metrics, views
from bdjax.eval.views import Relabel, Stamp, Triggered


class _Prediction(NamedTuple):
  """What a model says of a batch."""

  logits: jax.Array
  classes: jax.Array
  finite: jax.Array


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
  shown: Triggered | None = None,
  with_clean: bool = True,
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
    shown: the triggered images themselves, made by `triggered`, in place of
      `relabel` and `cross`; a `stamp` is put on top of them. What is compiled
      then knows nothing of the attack.
    with_clean: whether to count on clean images; else there are no clean_hits,
      clean_total and cross counts, and nobody looks at clean images.
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
    ValueError: if lengths disagree, there is no image, only a part of
      `stamp`, `relabel`, `key` is given, `relabel` or `cross` stands beside
      `shown`, `shown` was made of other images, or nothing is left to count.

  Example:
    >>> import numpy as np
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
  num = views.check_arguments(images, labels, index, batch_size)
  views.check_views(shown, stamp, relabel, cross, key, images)
  if not with_clean and stamp is None and shown is None:
    raise ValueError(
      '`with_clean=False` leaves nothing to count without an attack; give '
      '`shown`, or `stamp`, `relabel` and `key`.'
    )
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  index = jnp.arange(num) if index is None else jnp.asarray(index)

  def shown_batch(rows, y):
    """(triggered, target, crossed) of a batch; the first, None = no attack."""
    if shown is not None:
      view, target = shown.images[rows], shown.targets[rows]
      if stamp is not None:
        view = views.apply_stamp(stamp, view, key, index[rows])
      crossed = None if shown.crossed is None else shown.crossed[rows]
      return view, target, crossed
    if stamp is None or relabel is None or key is None:
      return None, None, None
    x = data.to_float(images[rows])
    view, crossed = views.apply_stamp(stamp, x, key, index[rows]), None
    if cross is not None:
      crossed = views.apply_stamp(
        cross, x, keys.stream(key, 'cross'), index[rows]
      )
    return view, relabel(y), crossed

  def one_batch(rows_and_mask):
    rows, mask = rows_and_mask
    y, counts, broken = labels[rows], {}, jnp.zeros_like(mask)
    if with_clean:
      clean = _predict(classifier, state, data.to_float(images[rows]))
      counts, broken = _clean_counts(clean, y, mask), mask & ~clean.finite
      if with_loss:
        counts |= {'clean_loss': _loss_sum(clean.logits, y, mask)}
    view, target, crossed = shown_batch(rows, y)
    if view is None:
      return counts | {'non_finite': jnp.sum(broken)}
    led = mask & (target != y)
    stamped = _predict(classifier, state, view)
    counts |= _attack_counts(stamped, y, target, led)
    broken |= led & ~stamped.finite
    if with_loss:
      counts |= {'attack_loss': _loss_sum(stamped.logits, target, led)}
    if with_clean and crossed is not None:
      other = _predict(classifier, state, crossed)
      counts |= _cross_counts(other, y, target, mask, led)
      broken |= mask & ~other.finite
    return counts | {'non_finite': jnp.sum(broken)}

  per_batch = jax.lax.map(one_batch, views.padded_rows(num, batch_size))
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
  shown: Triggered | None = None,
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
    shown: as in `count`; all attacks of one shape share a program.
    batch_size: as in `count`.

  Returns:
    c_acc, asr, r_acc, n_clean_test, n_triggered_test, finite and, with a
    `cross`, cross_acc and cross_asr; see `rates`.

  Raises:
    TypeError: as `count`.
    ValueError: as `count`.

  Example:
    >>> import numpy as np
    >>> logits = jnp.asarray([[0., 1., 0.]])  # a model that always says 1
    >>> constant = types.Classifier(
    ...   init=None, features=None, info=None,
    ...   apply=lambda s, x, **_: (jnp.tile(s, (len(x), 1)), s))
    >>> evaluate(constant, logits, np.zeros((4, 2, 2, 3), np.uint8),
    ...          np.arange(4) % 3)['c_acc']
    0.25
  """
  program = _compiled(classifier, stamp, relabel, cross, batch_size)
  return metrics.rates(program(state, images, labels, key, index, shown))


@functools.lru_cache(maxsize=8)
def _compiled(classifier, stamp, relabel, cross, batch_size):
  """The jitted `count` of one set of functions."""

  @jax.jit
  def program(state, images, labels, key, index, shown):
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
      shown=shown,
      batch_size=batch_size,
    )

  return program


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
