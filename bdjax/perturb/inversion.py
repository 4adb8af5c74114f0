"""Trigger inversion: for every class the smallest patch that leads to it.

For a class t, a mask m [h, w, 1] and a pattern q [h, w, c], both squashed from
free numbers, with x' = (1 − m)·x + m·q:

  min CE(f(x'), t) + cost · ‖m‖₁

by Adam, the cost steered once per epoch by whether the patch works. One class
is a lane: all of a lane's state is arrays, so that classes are an axis.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, types

_T = TypeVar('_T')


@types.hparams
class InversionHParams:
  """How one patch is sought; the defaults are the benchmark's.

  Attributes:
    lr: Adam's learning rate.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment.
    cost: weight of ‖m‖₁ at the start.
    multiplier: the cost rises by this factor and falls by its power 3/2.
    success: share of images at their target from which an epoch counts as a
      success.
    patience: epochs of the same outcome after which the cost changes.
    stop_patience: epochs without a clearly smaller mask after which a lane
      stops, once its cost has both risen and fallen.
    stop_ratio: a mask is clearly smaller below this share of the best so far.
  """

  lr: float = 0.1
  b1: float = 0.5
  b2: float = 0.9
  cost: float = 1e-3
  multiplier: float = 2.0
  success: float = 0.98
  patience: int = 5
  stop_patience: int = 25
  stop_ratio: float = 0.99


class Patch(NamedTuple):
  """What is blended into an image.

  Attributes:
    mask: [h, w, 1] in [0, 1]; 1 replaces a pixel.
    pattern: [h, w, c] in [0, 1].
  """

  mask: jax.Array
  pattern: jax.Array


class CostState(NamedTuple):
  """The steering of one lane's cost, epoch by epoch.

  Attributes:
    cost: float32 [], the weight now.
    restarts: int32 [], successes in a row at a cost of 0.
    successes: int32 [], in a row.
    failures: int32 [], in a row.
    has_risen: bool [], whether the cost was ever raised.
    has_fallen: bool [], whether it was ever lowered.
    best_norm: float32 [], smallest average ‖m‖₁ of a successful epoch, or ∞.
    stop_norm: float32 [], the same as the stopping rule last saw it.
    waited: int32 [], epochs without a clearly smaller mask.
    is_done: bool [], whether the lane has stopped.
  """

  cost: jax.Array
  restarts: jax.Array
  successes: jax.Array
  failures: jax.Array
  has_risen: jax.Array
  has_fallen: jax.Array
  best_norm: jax.Array
  stop_norm: jax.Array
  waited: jax.Array
  is_done: jax.Array


class LaneState(NamedTuple):
  """The search for one class; stack it along the classes.

  Attributes:
    free: the patch before squashing.
    adam: Adam's state.
    control: the steering of the cost.
    best: the patch of the best epoch so far.
    hits: int32 [], images at their target in this epoch.
    seen: int32 [], images in this epoch.
    norms: float32 [], sum of ‖m‖₁ over this epoch's steps.
    steps: int32 [], steps of this epoch.
  """

  free: Patch
  adam: optax.OptState
  control: CostState
  best: Patch
  hits: jax.Array
  seen: jax.Array
  norms: jax.Array
  steps: jax.Array


def squash(free: _T) -> _T:
  """tanh(u)/(2 + 1e-7) + 1/2 of every leaf, within (0, 1)."""
  return jax.tree.map(lambda u: jnp.tanh(u) / (2 + 1e-7) + 0.5, free)


def blend(patch: Patch, images: types.Images) -> types.Images:
  """(1 − m)·x + m·q for images [b, h, w, c] in [0, 1]."""
  mask, pattern = patch.mask[None], patch.pattern[None]
  return (1 - mask) * images + mask * pattern


def start_cost(cost: float | jax.Array) -> CostState:
  """The steering before the first epoch."""
  zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
  infinite = jnp.asarray(jnp.inf, jnp.float32)
  return CostState(
    cost=jnp.asarray(cost, jnp.float32),
    restarts=zero,
    successes=zero,
    failures=zero,
    has_risen=no,
    has_fallen=no,
    best_norm=infinite,
    stop_norm=infinite,
    waited=zero,
    is_done=no,
  )


def steer_cost(
  state: CostState,
  is_success: jax.Array,
  norm: jax.Array,
  hp: InversionHParams,
) -> CostState:
  """One epoch's outcome moves the cost.

  `patience` successes in a row raise it, as many failures lower it; a cost of
  0 is set to the first one by `patience` successes. Counters start again after
  a change. The lane stops as `InversionHParams` says.

  Args:
    state: before.
    is_success: bool [], whether the epoch's accuracy reached `success`.
    norm: [], average ‖m‖₁ over the epoch.
    hp: hyper-parameters.

  Returns:
    The next state.
  """
  # The best norm first: the stopping rule compares the new with the old best.
  best = jnp.where(
    is_success, jnp.minimum(state.best_norm, norm), state.best_norm
  )
  has_best = jnp.isfinite(best)
  is_stale = has_best & (best >= hp.stop_ratio * state.stop_norm)
  waited = jnp.where(is_stale, state.waited + 1, 0)
  stop_norm = jnp.minimum(state.stop_norm, best)
  is_done = state.is_done | state.has_risen & state.has_fallen & (
    waited >= hp.stop_patience
  )
  is_zero = state.cost == 0
  restarts = jnp.where(is_zero & is_success, state.restarts + 1, 0)
  is_restart = restarts >= hp.patience
  successes = jnp.where(is_success, state.successes + 1, 0)
  failures = jnp.where(is_success, 0, state.failures + 1)
  is_rise = ~is_restart & (successes >= hp.patience)
  is_fall = failures >= hp.patience
  cost = jnp.where(is_rise, state.cost * hp.multiplier, state.cost)
  cost = jnp.where(is_fall, cost / hp.multiplier**1.5, cost)
  return CostState(
    cost=jnp.where(is_restart, hp.cost, cost).astype(jnp.float32),
    restarts=jnp.where(is_restart, 0, restarts),
    successes=jnp.where(is_restart | is_rise, 0, successes),
    failures=jnp.where(is_restart | is_fall, 0, failures),
    has_risen=~is_restart & (state.has_risen | is_rise),
    has_fallen=~is_restart & (state.has_fallen | is_fall),
    best_norm=best,
    stop_norm=stop_norm,
    waited=waited.astype(jnp.int32),
    is_done=is_done,
  )


def start_lane(
  image_shape: tuple[int, int, int], hp: InversionHParams
) -> LaneState:
  """A lane before its first step: all free numbers 1."""
  h, w, c = image_shape
  free = Patch(jnp.ones((h, w, 1)), jnp.ones((h, w, c)))
  zero = jnp.zeros((), jnp.int32)
  return LaneState(
    free=free,
    adam=_adam(hp).init(free),
    control=start_cost(hp.cost),
    best=squash(free),
    hits=zero,
    seen=zero,
    norms=jnp.zeros(()),
    steps=zero,
  )


def step_lane(
  predict: Callable[[jax.Array], jax.Array],
  state: LaneState,
  batch: types.Batch,
  target: jax.Array,
  is_epoch_end: jax.Array | bool,
  hp: InversionHParams,
) -> tuple[LaneState, jax.Array]:
  """One Adam step towards one class, and the epoch's verdict at its end.

  Args:
    predict: images -> logits, frozen.
    state: the lane.
    batch: 'image' [b, h, w, c], and 'mask' [b], False for what does not count.
    target: int [], the class.
    is_epoch_end: whether this is an epoch's last step.
    hp: hyper-parameters.

  Returns:
    The lane and the loss before the step; where the lane has stopped, the same
    lane and 0.
  """
  # A branch, so that one class at a time costs nothing once it has stopped.
  return jax.lax.cond(
    state.control.is_done,
    lambda state: (state, jnp.zeros_like(state.norms)),
    lambda state: _step(predict, state, batch, target, is_epoch_end, hp),
    state,
  )


def _step(predict, state, batch, target, is_epoch_end, hp):
  """The step of a lane that has not stopped."""

  def loss_fn(free):
    patch = squash(free)
    logits = predict(blend(patch, batch['image']))
    log_p = jax.nn.log_softmax(logits)[:, target]
    size = jnp.sum(jnp.abs(patch.mask))
    is_hit = (jnp.argmax(logits, -1) == target) & batch['mask']
    hits = jnp.sum(is_hit, dtype=jnp.int32)
    return state.control.cost * size - jnp.mean(log_p), (hits, size)

  (loss, (hits, size)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    state.free
  )
  updates, adam = _adam(hp).update(grads, state.adam)
  moved = state._replace(
    free=jax.tree.map(jnp.add, state.free, updates),
    adam=adam,
    hits=state.hits + hits,
    seen=state.seen + jnp.sum(batch['mask'], dtype=jnp.int32),
    norms=state.norms + size,
    steps=state.steps + 1,
  )
  return _where(is_epoch_end, _end_epoch(moved, hp), moved), loss


def invert_step(
  predict: Callable[[jax.Array], jax.Array],
  states: LaneState,
  batch: types.Batch,
  is_epoch_end: jax.Array | bool,
  hp: InversionHParams,
  *,
  chunk: int | None = None,
) -> tuple[LaneState, jax.Array]:
  """`step_lane` for all classes in one program.

  Args:
    predict: images -> logits, frozen.
    states: lanes [n], class by class.
    batch: the same images for all classes.
    is_epoch_end: whether this is an epoch's last step.
    hp: hyper-parameters.
    chunk: classes at a time; None = one on a CPU, where that was measured to
      be faster, else all. It bounds the memory, and does not change the
      result.

  Returns:
    Lanes [n] and losses [n].

  Raises:
    ValueError: if the chunk is not positive.
  """
  checks.positive(chunk=chunk)
  num = states.hits.shape[0]

  def one(lane):
    state, target = lane
    return step_lane(predict, state, batch, target, is_epoch_end, hp)

  lanes = (states, jnp.arange(num))
  if chunk is None:
    chunk = 1 if jax.default_backend() == 'cpu' else num
  if chunk == 1:
    return jax.lax.map(one, lanes)
  if chunk >= num:
    return jax.vmap(one)(lanes)
  return jax.lax.map(one, lanes, batch_size=chunk)


def found_patch(state: LaneState) -> Patch:
  """The best patch of a lane, or the last one if it never succeeded."""
  is_found = jnp.isfinite(state.control.best_norm)
  return _where(is_found, state.best, squash(state.free))


def _end_epoch(state: LaneState, hp: InversionHParams) -> LaneState:
  """The verdict on an epoch; counts start again."""
  is_success = state.hits >= hp.success * state.seen
  norm = state.norms / jnp.maximum(state.steps, 1)
  is_best = is_success & (norm < state.control.best_norm)
  zero = jnp.zeros_like(state.steps)
  return state._replace(
    control=steer_cost(state.control, is_success, norm, hp),
    best=_where(is_best, squash(state.free), state.best),
    hits=zero,
    seen=zero,
    norms=jnp.zeros_like(state.norms),
    steps=zero,
  )


def _adam(hp: InversionHParams) -> optax.GradientTransformation:
  return optax.adam(hp.lr, b1=hp.b1, b2=hp.b2)


def _where(condition, yes, no):
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
