"""Transfer re-activation: one perturbation learned on other defended models.

The adversary cannot look into the defended model, but knows which backdoor is
inside: on surrogates f_1 … f_M, other defended versions of the same attacked
model or models of another architecture trained on the same poisoned data, a
perturbation Δ shared by all triggered images x_ξ is optimized, and then used
on models that took no part in it:

  L_m(Δ) = mean CE(f_m(clip(x_ξ + Δ, 0, 1)), t),  ‖Δ‖ ≤ eps

1. Δ ← U[−eps, eps], projected onto the ball.
2. Each outer epoch: shuffle the pool of triggered training images.
3. For each full batch, inner_steps times, by `mode`:
     avg    Δ ← project(Δ − lr · Σ_m ∇L_m), or the mean over m
     step   for each m: Δ ← project(Δ − lr · ∇L_m)
     mom    for each m: v ← momentum · v − ∇L_m / ‖∇L_m‖₂,
            Δ ← project(Δ + lr · v); v starts at 0 and is never reset
4. The last Δ is the result; the model under attack is not asked once.

Access:      gradients of the surrogates, none of the defended model; data: the
             attacker's pool of triggered training images and their targets;
             stage: inference
Space:       pixel [0,1]
BN:          frozen-BN in every pass
Guarantees:  - the model is returned bit-identical
             - the perturbation is inside the ball
             - triggered images stay in [0, 1]
             - the attacked model's weights do not change the perturbation
             - one surrogate: avg equals step, and the white-box attack without
               its second term
Divergences: - Targets may differ by image, so that all-to-all works too.
             - The official file projects with an attribute it never sets; the
               bound of the norm is meant.
             - Logged loss and asr are means over surrogates, of the batch
               before its steps; the official file tests on the targets every
               20 epochs, here they are asked once, at the end.
             - The pool is drawn from all images that the trigger leads away;
               the official one from the stored poisoned ones.
             - `mean_over_models`, off by default, makes the step independent
               of M.
Cost:        M·inner_steps forward/backward passes per batch with respect to the
             image, one surrogate after the other; memory of M models and of
             one input gradient

Example:
  >>> from bdjax import data, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> attack = transfer(classifier, TransferHParams(mode='mom'))
  >>> [phase.reads for phase in attack.phases]
  ['pool']

References:
  Zhu, Liang, Wu, Breaking the False Sense of Security in Backdoor Defense
  through Re-Activation Attack, NeurIPS 2024.
  JulieCarlon/Backdoor-Reactivation-Attack: reattack/transfer_attack.py
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, perturb, tree, types
from bdjax.reactivation import universal

MODES = ('avg', 'step', 'mom')
_TINY = 1e-12


@types.hparams
class TransferHParams:
  """Hyper-parameters of the transfer attack; defaults are the paper's.

  Attributes:
    eps: radius of the ball, pixel units in [0, 1].
    norm: 'linf' | 'l2' | 'l1', over the whole perturbation.
    lr: step of the descent, pixel units per unit of gradient or of velocity.
    outer_epochs: passes over the pool.
    inner_steps: steps on each batch.
    batch_size: images per batch; a smaller pool is one batch.
    mode: 'avg' | 'step' | 'mom', how surrogates take turns.
    momentum: share of the old velocity in mode 'mom'.
    mean_over_models: whether mode 'avg' takes the mean in place of the sum.
    num_surrogates: models the attacker holds, M.
    pool_size: triggered training images the attacker holds.
  """

  eps: float = 0.05
  norm: perturb.Norm = 'linf'
  lr: float = 0.05
  outer_epochs: int = 100
  inner_steps: int = 1
  batch_size: int = 500
  mode: str = 'avg'
  momentum: float = 0.9
  mean_over_models: bool = False
  num_surrogates: int = 3
  pool_size: int = 5000


class TransferState(NamedTuple):
  """State of the attack.

  Attributes:
    model: the defended model, never looked at.
    surrogates: per architecture a stack of models.
    delta: the perturbation [h, w, c].
    velocity: its velocity [h, w, c]; 0 unless mode 'mom'.
  """

  model: types.ModelState
  surrogates: tuple[types.ModelState, ...]
  delta: jax.Array
  velocity: jax.Array


def transfer(
  classifier: types.Classifier,
  hp: TransferHParams | None = None,
  surrogates: Sequence[types.Classifier] | None = None,
) -> types.Reactivation:
  """Makes the attack.

  Args:
    classifier: the defended model as deployed; says the shape of images.
    hp: hyper-parameters.
    surrogates: the surrogates' networks, one per stack; None = `classifier`.

  Returns:
    A re-activation of one phase, 'descend', that reads 'pool' and finds in the
    extra of its carry {'surrogates': a tuple of stacks, one per network}; its
    final extra is {'delta': [h, w, c]}, the parameters of the trigger. Metrics
    per step: loss and asr on the surrogates before the step.

  Raises:
    ValueError: for an unknown norm or mode, a budget in 0–255 units, a
      non-positive count or a negative rate; when it starts, for a carry
      without surrogates or with other stacks than networks.
  """
  hp = hp or TransferHParams()
  _validate(hp)
  networks = (classifier,) if surrogates is None else tuple(surrogates)
  shape = classifier.info.image_shape
  trigger = universal.trigger(shape, hp.eps, hp.norm)

  def init(key: jax.Array, carry: types.Carry) -> TransferState:
    stacks = _stacks(carry.extra, networks)
    delta = trigger.init(keys.stream(key, 'perturbation'))['delta']
    return TransferState(carry.model, stacks, delta, jnp.zeros_like(delta))

  def step(state: TransferState, batch: types.Batch, clock: types.Clock):
    del clock
    slopes = [
      lambda delta, model, net=net: _slope(net, model, delta, batch)
      for net in networks
    ]
    move = _together if hp.mode == 'avg' else _in_turn

    def inner(moving, _):
      return move(hp, slopes, state.surrogates, *moving)

    moving, metrics = jax.lax.scan(
      inner, (state.delta, state.velocity), None, length=hp.inner_steps
    )
    first = jax.tree.map(lambda x: x[0], metrics)
    return TransferState(state.model, state.surrogates, *moving), first

  def finish(state: TransferState) -> types.Carry:
    return types.Carry(model=state.model, extra={'delta': state.delta})

  phase = types.Phase(
    name='descend',
    init=init,
    step=step,
    finish=finish,
    num_epochs=hp.outer_epochs,
    batch_size=hp.batch_size,
    reads='pool',
    augment=False,
    drop_last=True,
    grad_passes=hp.inner_steps * hp.num_surrogates,
  )
  return types.Reactivation(phases=(phase,), trigger=trigger, info='transfer')


def _slope(classifier, model, delta, batch):
  """Gradient of one surrogate's loss by Δ, and its loss and asr."""

  def loss_fn(delta):
    images = perturb.clip_unit(batch['image'] + delta[None])
    logits, _ = classifier.apply(model, images)
    per_image = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    loss = universal.mean(per_image, batch['mask'])
    hit = jnp.argmax(logits, axis=-1) == batch['label']
    return loss, {'loss': loss, 'asr': universal.mean(hit, batch['mask'])}

  return jax.grad(loss_fn, has_aux=True)(delta)


def _together(hp, slopes, stacks, delta, velocity):
  """One step along the sum, or the mean, of all surrogates' gradients."""
  found = [
    jax.lax.map(lambda model, slope=slope: slope(delta, model), stack)
    for slope, stack in zip(slopes, stacks, strict=True)
  ]
  gradients, metrics = jax.tree.map(lambda *x: jnp.concatenate(x), *found)
  merge = jnp.mean if hp.mean_over_models else jnp.sum
  moved = delta - hp.lr * merge(gradients, axis=0)
  moved = perturb.project(moved, hp.eps, hp.norm)
  return (moved, velocity), jax.tree.map(jnp.mean, metrics)


def _in_turn(hp, slopes, stacks, delta, velocity):
  """One step along each surrogate's gradient, or velocity, after the other."""

  def one(slope, moving, model):
    delta, velocity = moving
    gradient, metrics = slope(delta, model)
    if hp.mode == 'mom':
      length = jnp.sqrt(jnp.sum(gradient**2))
      velocity = hp.momentum * velocity - gradient / (length + _TINY)
      moved = delta + hp.lr * velocity
    else:
      moved = delta - hp.lr * gradient
    return (perturb.project(moved, hp.eps, hp.norm), velocity), metrics

  moving, found = (delta, velocity), []
  for slope, stack in zip(slopes, stacks, strict=True):
    moving, metrics = jax.lax.scan(
      lambda moving, model, slope=slope: one(slope, moving, model),
      moving,
      stack,
    )
    found.append(metrics)
  metrics = jax.tree.map(lambda *x: jnp.mean(jnp.concatenate(x)), *found)
  return moving, metrics


def _stacks(extra, networks) -> tuple[types.ModelState, ...]:
  """The surrogates of a carry, one stack per network."""
  found = extra.get('surrogates') if isinstance(extra, dict) else None
  if found is None:
    raise ValueError(
      'The transfer attack needs models to learn from; start it from '
      "types.Carry(model=…, extra={'surrogates': (tree.stack([…]),)})."
    )
  if len(found) != len(networks):
    raise ValueError(
      f'{len(found)} stacks of surrogates for {len(networks)} networks; give '
      'one stack per network, models of unlike architecture in stacks of '
      'their own.'
    )
  for stack in found:
    tree.stack_size(stack)  # raises where it is no stack
  return tuple(found)


def _validate(hp: TransferHParams) -> None:
  """Refuses what cannot be meant; traced floats pass."""
  checks.one_of(perturb.NORMS, norm=hp.norm)
  checks.one_of(MODES, mode=hp.mode)
  checks.pixel_budget(hp.norm, eps=hp.eps)
  checks.positive(
    outer_epochs=hp.outer_epochs,
    inner_steps=hp.inner_steps,
    batch_size=hp.batch_size,
    num_surrogates=hp.num_surrogates,
    pool_size=hp.pool_size,
  )
  checks.non_negative(lr=hp.lr, momentum=hp.momentum)
