"""RNP: unlearns clean images, recovers them by masks, prunes what stays behind.

A model that is made to err on clean images keeps the backdoor. Masks that win
the clean images back leave the channels that only the backdoor needs.

  unlearn:  max_w L(w) on clean images, until accuracy is low
  recover:  min_m α·L(γm) of the unlearned model, m ∈ [0, 1] per channel
  prune:    γ_k = 0 in the *original* model where m_k ≤ τ

with L the cross-entropy.

1. SGD ascends the loss of all weights, gradients clipped to a norm. Once the
   accuracy over an epoch was at most `stop_accuracy`, nothing moves any more.
2. The unlearned weights are frozen; SGD on the masks, clipped to [0, 1].
3. Thresholds are tried on the original weights, the untouched model first; β
   stays. Select τ on the held-out fifth of the clean set, or take a given one.

Access:      weights and gradients; data: 1 % clean labelled, a fifth of it for
             the selection; stage: post_training
Space:       weights of a copy; BN scale
BN:          train-BN in 1, batch-BN/no-update in 2, frozen-BN in 3
Guarantees:  - masks stay in [0, 1]
             - unlearning stops after the first epoch of low accuracy
             - scales are kept or zero, all other weights are bit-identical
             - running statistics do not move
Divergences: - BackdoorBench clips gradients before they are computed, to no
               effect; here they are clipped.
             - Its thresholds are chosen by ASR on the triggered test set, which
               is `selector='oracle'`, or fixed, which is `threshold=0.7`.
             - An epoch's last batch wraps round; what comes again is not
               counted in the epoch's accuracy.
             - In 2 the reference's copy moves its running statistics; they are
               read by nobody, so they are dropped.
             - The batch size is ours.
Cost:        one forward/backward pass per step; memory of plain training plus
             one copy of the model; the sweep is one forward pass per threshold

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.rnp(classifier, defenses.RnpHParams(threshold=0.7))
  >>> [phase.name for phase in defense.phases]
  ['unlearn', 'recover', 'prune']

References:
  Li et al., Reconstructive Neuron Pruning for Backdoor Defense, ICML 2023.
  bboylyg/RNP  SCLBD/BackdoorBench: defense/rnp.py
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, optim, surgery, training, types

_MILESTONES = (10, 20)  # epochs at which unlearning slows down tenfold


@types.hparams
class RnpHParams:
  """Hyper-parameters of RNP; the defaults are the benchmark's for CIFAR-10.

  Attributes:
    unlearn_epochs: largest number of passes that ascend.
    unlearn_lr: learning rate of the ascent, a tenth after 10 epochs.
    momentum: heavy-ball momentum of weights and of masks.
    weight_decay: of the ascent, added to the gradient.
    clip_norm: largest norm of the ascent's gradient.
    stop_accuracy: training accuracy of an epoch at which the ascent ends.
    recover_epochs: passes that train the masks.
    recover_lr: learning rate of the masks.
    alpha: α, factor of the loss of the masks.
    batch_size: images per step.
    thresholds: τ to try, increasing.
    threshold: a given τ in place of a selection; None = select.
    selector: 'val' | 'oracle', see `training.selection`.
    max_drop: relative loss of accuracy that the selection tolerates.
  """

  unlearn_epochs: int = 20
  unlearn_lr: float = 0.01
  momentum: float = 0.9
  weight_decay: float = 5e-4
  clip_norm: float = 20.0
  stop_accuracy: float = 0.2
  recover_epochs: int = 20
  recover_lr: float = 0.2
  alpha: float = 0.2
  batch_size: int = 128
  thresholds: tuple[float, ...] = tuple(i / 20 for i in range(19))
  threshold: float | None = None
  selector: training.Selector = 'val'
  max_drop: float = 0.1


class HaltState(NamedTuple):
  """State of a phase that may stop moving.

  Attributes:
    inner: state of the phase itself.
    hits: float32 [], correct in this epoch so far.
    total: float32 [], images in this epoch so far.
    epoch: int32 [], the epoch they belong to.
    is_done: bool [].
  """

  inner: Any
  hits: jax.Array
  total: jax.Array
  epoch: jax.Array
  is_done: jax.Array


def rnp(
  classifier: types.Classifier, hp: RnpHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network, with BatchNorm.
    hp: hyper-parameters.

  Returns:
    A defense of the phases 'unlearn', 'recover' and 'select' or 'prune', that
    read 'clean_fit' and 'clean_val', or 'clean' where nothing is selected on
    it. Its extra holds the soft masks as 'scores', the hard ones as 'masks',
    and after a selection 'chosen' and 'accuracy'.

  Raises:
    Unsupported: if the network has no BatchNorm.
    ValueError: for a non-positive count or norm, a negative rate, an accuracy
      or drop outside [0, 1], an unknown selector or no thresholds.
  """
  hp = hp or RnpHParams()
  checks.positive(
    unlearn_epochs=hp.unlearn_epochs,
    recover_epochs=hp.recover_epochs,
    batch_size=hp.batch_size,
    clip_norm=hp.clip_norm,
  )
  checks.non_negative(
    unlearn_lr=hp.unlearn_lr, recover_lr=hp.recover_lr, alpha=hp.alpha
  )
  checks.unit_interval(stop_accuracy=hp.stop_accuracy)
  surgery.norm_names(classifier)
  holds_out = hp.threshold is None and hp.selector == 'val'
  length: dict[str, Any] = dict(
    batch_size=hp.batch_size,
    reads='clean_fit' if holds_out else 'clean',
  )
  pruning = training.prune_by_threshold(
    classifier,
    hp.threshold,
    hp.thresholds,
    selector=hp.selector,
    max_drop=hp.max_drop,
    batch_size=hp.batch_size,
  )
  unlearn = halt_at(_unlearn(classifier, hp, length), hp.stop_accuracy)
  recover = _recover(classifier, hp, length)
  return types.Defense(phases=(unlearn, recover, *pruning), info='rnp')


def _unlearn(classifier, hp, length) -> types.Phase:
  """Ascends the loss with a copy; the model of the carry stays."""

  def start(key, carry):
    del key
    return carry.model.params, (carry.model.batch_stats, carry)

  def objective(params, rest, batch, clock):
    del clock
    model = types.ModelState(params=params, batch_stats=rest[0])
    logits, new = classifier.apply(model, batch['image'], train=True)
    is_hit = (jnp.argmax(logits, axis=-1) == batch['label']) & batch['mask']
    accuracy = jnp.sum(is_hit) / jnp.sum(batch['mask'])
    loss = -training.cross_entropy(logits, batch['label'])
    return loss, ({'accuracy': accuracy}, (new.batch_stats, rest[1]))

  def finish(params, rest):
    unlearned = types.ModelState(params=params, batch_stats=rest[0])
    return training.with_extra(rest[1], unlearned=unlearned)

  ascent = optim.sgd(
    optim.step_epochs(hp.unlearn_lr, _MILESTONES),
    momentum=hp.momentum,
    weight_decay=hp.weight_decay,
  )
  return training.fit(
    start,
    objective,
    optax.chain(optax.clip_by_global_norm(hp.clip_norm), ascent),
    finish=finish,
    name='unlearn',
    num_epochs=hp.unlearn_epochs,
    augment=True,
    drop_last=False,
    **length,
  )


def _recover(classifier, hp, length) -> types.Phase:
  """Trains masks of the unlearned model, which is dropped afterwards."""

  def objective(masks, carry, batch, clock):
    del clock
    masked = surgery.apply_channel_mask(
      classifier, carry.extra['unlearned'], masks
    )
    # Batch statistics, as in training; those that come back are dropped.
    logits, _ = classifier.apply(masked, batch['image'], train=True)
    loss = hp.alpha * training.cross_entropy(logits, batch['label'])
    accuracy = training.accuracy(logits, batch['label'])
    return loss, ({'accuracy': accuracy}, carry)

  def finish(masks, carry):
    extra = {k: v for k, v in carry.extra.items() if k != 'unlearned'}
    return types.Carry(model=carry.model, extra={**extra, 'scores': masks})

  return training.fit_masks(
    classifier,
    objective,
    lr=hp.recover_lr,
    momentum=hp.momentum,
    finish=finish,
    name='recover',
    num_epochs=hp.recover_epochs,
    **length,
  )


def halt_at(
  phase: types.Phase, stop_accuracy: float | jax.Array
) -> types.Phase:
  """The phase, whose state stands still after an epoch of low accuracy.

  It runs its full length, so that shapes are static and every model of a stack
  has its own end.

  Args:
    phase: with `num_epochs`, and 'accuracy' among its metrics, the mean over
      the examples of `batch['mask']`.
    stop_accuracy: largest accuracy over an epoch that ends it, may be traced.

  Returns:
    The phase, with the metric 'is_done' of each step.
  """

  def init(key, carry):
    zero = jnp.zeros(())
    return HaltState(
      phase.init(key, carry), zero, zero, jnp.int32(0), jnp.asarray(False)
    )

  def step(state, batch, clock):
    begins = clock.epoch > state.epoch
    is_low = state.hits <= stop_accuracy * state.total
    is_done = state.is_done | (begins & is_low)
    inner, metrics = phase.step(state.inner, batch, clock)
    inner = jax.tree.map(
      lambda old, new: jnp.where(is_done, old, new), state.inner, inner
    )
    num = jnp.sum(batch['mask'], dtype=jnp.float32)
    hits = jnp.where(begins, 0, state.hits) + metrics['accuracy'] * num
    total = jnp.where(begins, 0, state.total) + num
    metrics = {**metrics, 'is_done': is_done.astype(jnp.float32)}
    return HaltState(inner, hits, total, clock.epoch, is_done), metrics

  return phase._replace(
    init=init, step=step, finish=lambda state: phase.finish(state.inner)
  )
