"""Phases of the defenses that prune channels of BatchNorm layers.

Such a method scores channels, by one look (`score`) or by soft masks that are
trained (`fit_masks`), and masks those beyond a threshold, which is either
given, `prune`, or found on held-out images, `prune_sweep`. Scores and masks
stay in `Carry.extra`, the pruned weights are the model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import checks, optim, surgery, types
from bdjax.training.phases import fit
from bdjax.training.selection import SELECTORS, one_by_one, selection


def score(
  classifier: types.Classifier,
  scores_of: Callable[[types.ModelState, jax.Array], surgery.Masks],
  *,
  reads: types.Reads,
  batch_size: int,
) -> types.Phase:
  """One step that scores all channels on one batch, with the data's recipe.

  Args:
    classifier: the network.
    scores_of: (model, images [b, h, w, c]) -> per norm [channels].
    reads: where the batch comes from; labels are not looked at.
    batch_size: images; fewer where there are fewer.

  Returns:
    A phase 'score' that leaves extra['scores'] and the model as it is.
  """

  def init(key, carry):
    del key
    blank = surgery.full_masks(classifier, carry.model)
    return with_extra(carry, scores=jax.tree.map(jnp.zeros_like, blank))

  def step(carry, batch, clock):
    del clock
    scores = scores_of(carry.model, batch['image'])
    mean = jnp.mean(jnp.concatenate(list(scores.values())))
    return with_extra(carry, scores=scores), {'mean_score': mean}

  return types.Phase(
    name='score',
    init=init,
    step=step,
    finish=lambda carry: carry,
    num_steps=1,
    grad_passes=0,
    batch_size=batch_size,
    reads=reads,
    augment=True,
  )


def fit_masks(
  classifier: types.Classifier,
  objective: Callable[..., tuple[jax.Array, Any]],
  *,
  lr: float | jax.Array,
  momentum: float | jax.Array,
  **phase: Any,
) -> types.Phase:
  """Trains a soft mask per channel, from 1, by SGD clipped to [0, 1].

  Args:
    classifier: the network.
    objective: (masks, carry, batch, clock) -> (loss, (metrics, carry)).
    lr: learning rate, without a schedule.
    momentum: heavy-ball momentum.
    **phase: `name`, a length, `batch_size`, `reads`, …; see `fit`.

  Returns:
    A phase over the data's recipe, whole epochs; it leaves extra['scores'] and
    the model as it is.
  """

  def clip(masks, carry):
    del carry
    return jax.tree.map(lambda m: jnp.clip(m, 0, 1), masks)

  defaults: dict[str, Any] = dict(
    finish=lambda masks, carry: with_extra(carry, scores=masks),
    augment=True,
    drop_last=False,
  )
  return fit(
    lambda key, carry: (surgery.full_masks(classifier, carry.model), carry),
    objective,
    optim.sgd(optim.constant(lr), momentum=momentum, weight_decay=0.0),
    constrain=clip,
    **{**defaults, **phase},
  )


def prune(
  classifier: types.Classifier,
  scores_of: Callable[[types.Carry], surgery.Masks],
  masks_of: Callable[[surgery.Masks], surgery.Masks],
  *,
  zero_bias: bool = False,
) -> types.Phase:
  """A one-shot phase, 'prune', that masks channels and reads nothing.

  Args:
    classifier: the network.
    scores_of: carry -> per norm [channels], such as what `score` left.
    masks_of: scores -> hard masks.
    zero_bias: whether β is masked along with γ.

  Returns:
    The phase; it leaves extra['scores'], extra['masks'] and the pruned model.
  """

  def init(key, carry):
    del key
    scores = scores_of(carry)
    masks = masks_of(scores)
    model = _masked(classifier, carry.model, masks, zero_bias)
    return with_extra(carry, model=model, scores=scores, masks=masks)

  return types.Phase(
    name='prune',
    init=init,
    step=lambda carry, batch, clock: (carry, {}),
    finish=lambda carry: carry,
  )


def prune_sweep(
  classifier: types.Classifier,
  masks_at: Callable[[types.Carry, jax.Array], surgery.Masks],
  thresholds: tuple[float, ...],
  *,
  zero_bias: bool = False,
  **rule: Any,
) -> tuple[types.Phase, ...]:
  """Phases that try thresholds, mildest first, and prune by the one selected.

  Args:
    classifier: the network.
    masks_at: (carry, threshold) -> hard masks.
    thresholds: static; the untouched model comes before all of them.
    zero_bias: whether β is masked along with γ.
    **rule: `selector`, `max_drop` and the like, see `selection`.

  Returns:
    The phases of `selection`; they leave the pruned model and in extra 'masks',
    'chosen', 0 for untouched, else 1 + the index of the threshold, and
    'accuracy' of all candidates.

  Raises:
    ValueError: without a threshold, or as `selection`.
  """
  if not thresholds:
    raise ValueError('`thresholds` is empty; give at least one to try.')
  values = jnp.asarray((thresholds[0], *thresholds), jnp.float32)

  def masks_of(carry, i):
    masks = masks_at(carry, values[i])
    return jax.tree.map(lambda m: jnp.where(i == 0, 1, m), masks)

  def candidate(carry, i):
    return _masked(classifier, carry.model, masks_of(carry, i), zero_bias)

  def finish(carry, i, accuracy):
    return with_extra(
      carry,
      model=candidate(carry, i),
      masks=masks_of(carry, i),
      chosen=i,
      accuracy=accuracy,
    )

  num = len(values)
  logits = one_by_one(classifier, candidate, num)
  return selection(logits, num, finish, **rule)


def prune_by_threshold(
  classifier: types.Classifier,
  threshold: float | jax.Array | None,
  thresholds: tuple[float, ...],
  **rule: Any,
) -> tuple[types.Phase, ...]:
  """Prunes the channels whose soft mask, extra['scores'], is small.

  Scales become 0 where the soft mask is at most the threshold; biases stay.

  Args:
    classifier: the network.
    threshold: a given one, may be traced; None selects among `thresholds`.
    thresholds: see `prune_sweep`.
    **rule: see `selection`.

  Returns:
    The phase of `prune` or those of `prune_sweep`.
  """
  scores_of = lambda carry: carry.extra['scores']
  if threshold is None:
    masks_at = lambda carry, t: surgery.keep_above(scores_of(carry), t)
    return prune_sweep(classifier, masks_at, thresholds, **rule)
  checks.one_of(SELECTORS, selector=rule.get('selector', 'val'))
  masks_of = lambda scores: surgery.keep_above(scores, threshold)
  return (prune(classifier, scores_of, masks_of),)


def with_extra(
  carry: types.Carry, model: types.ModelState | None = None, **extra: Any
) -> types.Carry:
  """The carry with entries of `extra` added, and maybe another model."""
  return types.Carry(
    model=carry.model if model is None else model,
    extra={**carry.extra, **extra},
  )


def _masked(classifier, model, masks, zero_bias: bool) -> types.ModelState:
  bias = masks if zero_bias else None
  return surgery.apply_channel_mask(classifier, model, masks, bias=bias)
