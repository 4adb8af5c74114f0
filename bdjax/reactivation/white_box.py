"""White-box re-activation: one perturbation that wakes a dormant backdoor.

The adversary who once implanted a trigger meets the defended model f, with
its gradients, and adds to the triggered images x_ξ one perturbation Δ shared
by all of them:

  x̂ = clip(x_ξ + Δ, 0, 1),  p = softmax(f(x̂)),  ‖Δ‖ ≤ eps
  L(Δ) = λ₁ · mean CE(f(x̂), t) + λ₂ · mean −log(1.0001 − p_r + 1e-12)

t is the attack's target of each image, r its most probable class other than t.
Optimized is Δ alone, by plain gradient descent: no sign, no momentum.

1. Δ ← U[−eps, eps], projected onto the ball.
2. Each outer epoch: shuffle the pool of triggered training images.
3. For each full batch, inner_steps times: Δ ← project(Δ − lr · ∇L).
4. The last Δ is the result; there is no selection.

Access:      gradients of the defended model; data: the attacker's pool of
             triggered training images and their targets; stage: inference
Space:       pixel [0,1]
BN:          frozen-BN in every pass
Guarantees:  - the model is returned bit-identical
             - the perturbation is inside the ball
             - triggered images stay in [0, 1]
             - the runner-up class is never the target
             - eps = 0 changes no image
Divergences: - Targets may differ by image, so that all-to-all works too; the
               paper has one target.
             - Logged loss and asr are those of the batch before its steps;
               the official code spends a forward pass after them.
             - A pixel that hits 0 or 1 exactly keeps its whole gradient, as
               in the official code; plain `jnp.clip` would halve it.
             - Defaults are the paper's L∞ setting of 50 epochs × 5 steps; the
               official file's own defaults are L2, eps 3, 100 × 100.
Cost:        inner_steps forward/backward passes per batch with respect to the
             image; no gradient of weights, memory of an input gradient

Example:
  >>> from bdjax import data, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> hp = WhiteBoxHParams(outer_epochs=2)
  >>> [phase.reads for phase in white_box(classifier, hp).phases]
  ['pool']

References:
  Zhu, Liang, Wu, Breaking the False Sense of Security in Backdoor Defense
  through Re-Activation Attack, NeurIPS 2024.
  JulieCarlon/Backdoor-Reactivation-Attack: reattack/wb_attack.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, perturb, training, types
from bdjax.reactivation import universal


@types.hparams
class WhiteBoxHParams:
  """Hyper-parameters of the white-box attack; defaults are the paper's.

  Attributes:
    eps: radius of the ball, pixel units in [0, 1].
    norm: 'linf' | 'l2' | 'l1', over the whole perturbation.
    lr: step of the descent, pixel units per unit of gradient.
    outer_epochs: passes over the pool.
    inner_steps: steps on each batch.
    batch_size: images per batch; a smaller pool is one batch.
    weight_ce: λ₁, of the cross-entropy to the target.
    weight_runner_up: λ₂, of the push against the strongest other class.
    pool_size: triggered training images the attacker holds.
  """

  eps: float = 0.05
  norm: perturb.Norm = 'linf'
  lr: float = 0.05
  outer_epochs: int = 50
  inner_steps: int = 5
  batch_size: int = 128
  weight_ce: float = 1.0
  weight_runner_up: float = 1.0
  pool_size: int = 1000


class WhiteBoxState(NamedTuple):
  """State of the attack.

  Attributes:
    model: the defended model, never changed.
    delta: the perturbation [h, w, c].
  """

  model: types.ModelState
  delta: jax.Array


def white_box(
  classifier: types.Classifier, hp: WhiteBoxHParams | None = None
) -> types.Reactivation:
  """Makes the attack.

  Args:
    classifier: the defended model as deployed.
    hp: hyper-parameters.

  Returns:
    A re-activation of one phase, 'descend', that reads 'pool'; its final
    extra is {'delta': [h, w, c]}, the parameters of the trigger. Metrics per
    step: loss and asr of the batch before the step.

  Raises:
    ValueError: for an unknown norm, a budget in 0–255 units, a non-positive
      count or a negative weight.
  """
  hp = hp or WhiteBoxHParams()
  _validate(hp)
  shape = classifier.info.image_shape
  trigger = universal.trigger(shape, hp.eps, hp.norm)

  def init(key: jax.Array, carry: types.Carry) -> WhiteBoxState:
    delta = trigger.init(keys.stream(key, 'perturbation'))['delta']
    return WhiteBoxState(carry.model, delta)

  def step(state: WhiteBoxState, batch: types.Batch, clock: types.Clock):
    del clock
    target, mask = batch['label'], batch['mask']

    def loss_fn(delta):
      images = perturb.clip_unit(batch['image'] + delta[None])
      logits, _ = classifier.apply(state.model, images)
      per_image = reactivation_loss(
        logits, target, hp.weight_ce, hp.weight_runner_up
      )
      loss = universal.mean(per_image, mask)
      hit = jnp.argmax(logits, axis=-1) == target
      return loss, {'loss': loss, 'asr': universal.mean(hit, mask)}

    delta, metrics = perturb.universal_descent(
      loss_fn,
      state.delta,
      lr=hp.lr,
      eps=hp.eps,
      norm=hp.norm,
      num_inner=hp.inner_steps,
    )
    return WhiteBoxState(state.model, delta), metrics

  def finish(state: WhiteBoxState) -> types.Carry:
    delta = perturb.project(state.delta, hp.eps, hp.norm)
    return types.Carry(model=state.model, extra={'delta': delta})

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
  )
  return types.Reactivation(phases=(phase,), trigger=trigger, info='white_box')


def reactivation_loss(
  logits: jax.Array,
  target: jax.Array,
  weight_ce: float | jax.Array = 1.0,
  weight_runner_up: float | jax.Array = 1.0,
) -> jax.Array:
  """Cross-entropy to the target, and a push against the runner-up.

  Args:
    logits: [b, n] of the perturbed images.
    target: int [b].
    weight_ce: λ₁.
    weight_runner_up: λ₂.

  Returns:
    float32 [b]; the objective is its mean.
  """
  ce = optax.losses.softmax_cross_entropy_with_integer_labels(logits, target)
  # An integer index: no gradient flows through the choice of the class.
  rival = training.runner_up(logits, target)
  return weight_ce * ce + weight_runner_up * training.repulsion(logits, rival)


def _validate(hp: WhiteBoxHParams) -> None:
  """Refuses what cannot be meant; traced floats pass."""
  checks.one_of(perturb.NORMS, norm=hp.norm)
  checks.pixel_budget(hp.norm, eps=hp.eps)
  checks.positive(
    outer_epochs=hp.outer_epochs,
    inner_steps=hp.inner_steps,
    batch_size=hp.batch_size,
    pool_size=hp.pool_size,
  )
  checks.non_negative(
    lr=hp.lr,
    weight_ce=hp.weight_ce,
    weight_runner_up=hp.weight_runner_up,
  )
