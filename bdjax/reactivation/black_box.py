"""Black-box re-activation: a dormant backdoor woken by queries alone.

The adversary who once implanted a trigger sees nothing but the scores of the
defended model f. On the triggered images x_ξ of a fixed pool, a perturbation Δ
shared by all of them is found by random search (Square Attack):

  L(Δ) = Σ CE(f(clip(x_ξ + Δ, 0, 1)), t),  ‖Δ‖ ≤ eps

with t the attack's target of each image; or the margin max_{j≠t} z_j − z_t of
the logits in place of the cross-entropy. One query is one Δ shown to f on the
whole pool.

1. Δ ← stripes of ±eps (L∞) or tiles of norm eps (L2); query 1.
2. Each further query: change Δ in a square window, which shrinks with the share
   of the budget that is spent (`perturb.square_search`).
3. Keep the proposal if and only if the sum L strictly decreases.
4. Stop once a kept Δ sends more than stop_asr of the pool to their targets.

Access:      scores of the defended model; data: the attacker's pool of
             triggered training images and their targets; stage: inference
Space:       pixel [0,1]
BN:          frozen-BN in every pass
Guarantees:  - the model is returned bit-identical
             - the perturbation is inside the ball at every query
             - accepted losses strictly decrease
             - num_queries queries at most, the first of the start
             - after the stop nothing changes and no query is counted
             - the order of the pool does not matter
             - eps = 0 changes no image
Divergences: - The released code takes the difference of normalized images as
               its L∞ start, which leaves the ball; here Δ is in pixel space and
               in the ball throughout.
             - Windows may reach the last row and column; `legacy_window_range`
               leaves them out, as released.
             - In L2 the released code spends one query more than its budget.
             - The pool's ASR is that of the kept Δ; the released code returns
               that of the last proposal.
             - Targets may differ by image, so that all-to-all works too.
             - L1 is refused; the released code takes L2 in its place.
             - One search on one pool; the released code repeats all of it on a
               second half. More pools are more runs.
Cost:        one forward pass over the whole pool per query and no backward
             pass: num_queries · pool_size images in all

Example:
  >>> from bdjax import data, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> phase = black_box(classifier, BlackBoxHParams(num_queries=100)).phases[0]
  >>> phase.name, phase.reads, phase.num_steps, phase.grad_passes
  ('search', 'pool', 100, 0)

References:
  Zhu, Liang, Wu, Breaking the False Sense of Security in Backdoor Defense
  through Re-Activation Attack, NeurIPS 2024.
  Andriushchenko et al., Square Attack: a query-efficient black-box adversarial
  attack via random search, ECCV 2020.
  JulieCarlon/Backdoor-Reactivation-Attack: reattack/bb_attack.py,
  utils/reattack_utils/square_attack.py
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, perturb, training, types
from bdjax.reactivation import universal

LOSSES = ('ce', 'margin')


@types.hparams
class BlackBoxHParams:
  """Hyper-parameters of the black-box attack; defaults are the paper's.

  Attributes:
    eps: radius of the ball, pixel units in [0, 1].
    norm: 'linf' | 'l2', over the whole perturbation.
    num_queries: perturbations shown to the model, the start included.
    pool_size: triggered training images the attacker holds; every query takes
      all of them.
    loss: 'ce' | 'margin', summed over the pool.
    p_start: share of the image in the first windows.
    stop_asr: the search ends above this ASR on the pool; 1 = never.
    legacy_window_range: windows never reach the last row and column.
  """

  eps: float = 0.05
  norm: perturb.SquareNorm = 'linf'
  num_queries: int = 10_000
  pool_size: int = 500
  loss: Literal['ce', 'margin'] = 'ce'
  p_start: float = dataclasses.field(default=0.1, metadata={'static': True})
  stop_asr: float = 0.99
  legacy_window_range: bool = False


class BlackBoxState(NamedTuple):
  """State of the search.

  Attributes:
    model: the defended model, never changed.
    delta: the perturbation kept so far [h, w, c].
    loss: its loss on the pool, a sum; infinite before the first query.
    asr: its ASR on the pool.
    best_asr: largest ASR of all that were kept.
    queries: int32 [], queries so far.
    done: bool [], whether the search is over.
  """

  model: types.ModelState
  delta: jax.Array
  loss: jax.Array
  asr: jax.Array
  best_asr: jax.Array
  queries: jax.Array
  done: jax.Array


def black_box(
  classifier: types.Classifier, hp: BlackBoxHParams | None = None
) -> types.Reactivation:
  """Makes the attack.

  Args:
    classifier: the defended model as deployed.
    hp: hyper-parameters.

  Returns:
    A re-activation of one phase, 'search', that reads 'pool' and takes all of
    it in each step, which is one query: hand it `pool_size` images or fewer.
    Its final extra is {'delta': [h, w, c]}, the parameters of the trigger.
    Metrics per step: loss (mean over the pool) and asr of what is kept after
    the step, best_asr, accepted, queries so far, and done, which is true from
    the step on that is not taken any more.

  Raises:
    ValueError: for a norm other than L∞ and L2, a budget in 0–255 units, an
      unknown loss, a non-positive count, or a share out of range.
  """
  hp = hp or BlackBoxHParams()
  _validate(hp)
  shape = classifier.info.image_shape
  search = perturb.square_search(
    shape,
    hp.num_queries,
    eps=hp.eps,
    norm=hp.norm,
    p_start=hp.p_start,
    legacy_window_range=hp.legacy_window_range,
  )

  def init(key: jax.Array, carry: types.Carry) -> BlackBoxState:
    return BlackBoxState(
      model=carry.model,
      delta=search.start(keys.stream(key, 'perturbation')),
      loss=jnp.float32(jnp.inf),
      asr=jnp.float32(0),
      best_asr=jnp.float32(0),
      queries=jnp.int32(0),
      done=jnp.zeros((), bool),
    )

  def step(state: BlackBoxState, batch: types.Batch, clock: types.Clock):
    batch = in_order(batch)
    is_start = clock.step == 0
    proposal = jnp.maximum(clock.step - 1, 0)
    candidate = search.propose(clock.key, state.delta, proposal)
    candidate = jnp.where(is_start, state.delta, candidate)
    images = perturb.clip_unit(batch['image'] + candidate[None])
    logits, _ = classifier.apply(state.model, images)
    loss, asr = pool_loss(logits, batch['label'], batch['mask'], hp.loss)
    accepted = (is_start | (loss < state.loss)) & ~state.done
    after = _keep(state, accepted, candidate, loss, asr)
    after = after._replace(done=state.done | (after.best_asr > hp.stop_asr))
    size = jnp.maximum(jnp.sum(batch['mask'], dtype=jnp.float32), 1.0)
    metrics = {
      'loss': after.loss / size,
      'asr': after.asr,
      'best_asr': after.best_asr,
      'accepted': accepted,
      'queries': after.queries,
      # As it was before: a step on which it is true has changed nothing.
      'done': state.done,
    }
    return after, metrics

  def finish(state: BlackBoxState) -> types.Carry:
    return types.Carry(model=state.model, extra={'delta': state.delta})

  phase = types.Phase(
    name='search',
    init=init,
    step=step,
    finish=finish,
    num_steps=hp.num_queries,
    batch_size=hp.pool_size,
    reads='pool',
    augment=False,
    grad_passes=0,
    done='done',
  )
  trigger = universal.trigger(shape, hp.eps, hp.norm)
  return types.Reactivation(phases=(phase,), trigger=trigger, info='black_box')


def in_order(batch: types.Batch) -> types.Batch:
  """A batch sorted by index, so that rounding ignores how it was shuffled."""
  order = jnp.argsort(batch['index'])
  return {name: values[order] for name, values in batch.items()}


def pool_loss(
  logits: jax.Array, target: jax.Array, mask: jax.Array, loss: str = 'ce'
) -> tuple[jax.Array, jax.Array]:
  """What one query returns to the attacker.

  Args:
    logits: [b, n] of the perturbed images.
    target: int [b].
    mask: bool [b], images that count.
    loss: 'ce' for the cross-entropy, 'margin' for the largest other logit
      minus the target's.

  Returns:
    (sum of losses, ASR).
  """
  if loss == 'ce':
    per_image = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, target
    )
  else:
    rival = training.runner_up(logits, target)
    of = lambda label: jnp.take_along_axis(logits, label[:, None], axis=-1)
    per_image = (of(rival) - of(target))[:, 0]
  hit = jnp.argmax(logits, axis=-1) == target
  return jnp.sum(jnp.where(mask, per_image, 0)), universal.mean(hit, mask)


def _keep(state, accepted, candidate, loss, asr) -> BlackBoxState:
  """The state after a query; a search that is over counts none."""
  pick = lambda new, old: jnp.where(accepted, new, old)
  return state._replace(
    delta=pick(candidate, state.delta),
    loss=pick(loss, state.loss),
    asr=pick(asr, state.asr),
    best_asr=pick(jnp.maximum(asr, state.best_asr), state.best_asr),
    queries=state.queries + ~state.done,
  )


def _validate(hp: BlackBoxHParams) -> None:
  """Refuses what cannot be meant; traced floats pass."""
  if hp.norm == 'l1':
    raise ValueError(
      "`norm='l1'` has no square search; use norm='l2' or 'linf', or the "
      'white-box attack for l1.'
    )
  checks.one_of(perturb.SQUARE_NORMS, norm=hp.norm)
  checks.one_of(LOSSES, loss=hp.loss)
  checks.pixel_budget(hp.norm, eps=hp.eps)
  checks.positive(num_queries=hp.num_queries, pool_size=hp.pool_size)
  checks.fraction(p_start=hp.p_start)
  checks.unit_interval(stop_asr=hp.stop_asr)
