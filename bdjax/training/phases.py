"""Phases that many methods share: descend on a loss, tune, implant."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bdjax import keys, types
from bdjax.training import losses


class DescentState(NamedTuple):
  """State of a descent phase.

  Attributes:
    model: the model being trained.
    opt_state: the optimizer's state.
    extra: `Carry.extra`, an attack's state for instance.
  """

  model: types.ModelState
  opt_state: Any
  extra: types.PyTree


def descent(
  objective: Callable[..., tuple[jax.Array, Any]],
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  prepare: Callable[..., tuple[types.PyTree, types.Batch]] | None = None,
  **length: Any,
) -> types.Phase:
  """A phase whose step is one optimizer update of all parameters.

  BN: train-BN; running statistics move once per step, with the gradient taken
  at the parameters themselves. An optimizer that asks for further gradients
  (SAM) gets them on the same batch, batch-BN/no-update.

  Args:
    objective: (model, extra, batch, clock) -> (loss, (logits, ModelState)).
    optimizer: its `update` gets the keyword arguments `clock` and `grad_fn`:
      (params, i) -> gradients on the same batch.
    prepare: (extra, model, batch, clock) -> (extra, batch) before the step.
    **length: the remaining fields of the `Phase`: name, num_epochs, ….

  Returns:
    The phase; its metrics are `loss` and `accuracy` before the update.
  """

  def init(key: jax.Array, carry: types.Carry) -> DescentState:
    del key
    opt_state = optimizer.init(carry.model.params)
    return DescentState(carry.model, opt_state, carry.extra)

  def step(state: DescentState, batch: types.Batch, clock: types.Clock):
    model, opt_state, extra = state
    if prepare is not None:
      extra, batch = prepare(extra, model, batch, clock)

    def loss_fn(params):
      here = types.ModelState(params=params, batch_stats=model.batch_stats)
      return objective(here, extra, batch, clock)

    grad_fn = lambda params, i: jax.grad(loss_fn, has_aux=True)(params)[0]
    (loss, (logits, new)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      model.params
    )
    updates, opt_state = optimizer.update(
      grads, opt_state, model.params, clock=clock, grad_fn=grad_fn
    )
    model = types.ModelState(
      params=optax.apply_updates(model.params, updates),
      batch_stats=new.batch_stats,
    )
    accuracy = losses.accuracy(logits, batch['label'])
    return (
      DescentState(model, opt_state, extra),
      {'loss': loss, 'accuracy': accuracy},
    )

  def finish(state: DescentState) -> types.Carry:
    return types.Carry(model=state.model, extra=state.extra)

  return types.Phase(init=init, step=step, finish=finish, **length)


def supervised(
  classifier: types.Classifier,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy,
  **length: Any,
) -> types.Phase:
  """Plain training on the labels of what the phase reads.

  Args:
    classifier: the network.
    optimizer: see `descent`.
    loss: (logits, labels) -> scalar.
    **length: the remaining fields of the `Phase`.

  Returns:
    The phase.
  """

  def objective(model, extra, batch, clock):
    del extra, clock
    logits, new = classifier.apply(model, batch['image'], train=True)
    return loss(logits, batch['label']), (logits, new)

  return descent(objective, optimizer, **length)


def implant(
  classifier: types.Classifier,
  attack: types.Attack,
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  **length: Any,
) -> types.Phase:
  """Training under an attack; `Carry.extra` holds the `AttackState`.

  The phase poisons its batches itself, because the order of trigger and
  augmentation belongs to the attack, and because some attacks learn their
  trigger along with the model.

  Args:
    classifier: the network.
    attack: what to implant.
    optimizer: see `descent`.
    augment: (images, keys [b]) -> images, or None.
    **length: the remaining fields of the `Phase`; `augment` is not among them.

  Returns:
    The phase.
  """

  def augmented(batch, clock):
    if augment is None:
      return batch
    key = keys.stream(clock.key, 'augment')
    per_example = keys.per_example(key, batch['index'])
    return {**batch, 'image': augment(batch['image'], per_example)}

  def prepare(attack_state, model, batch, clock):
    key = keys.stream(clock.key, 'trigger')
    if attack.info.order == 'augment_poison':
      batch = augmented(batch, clock)
    batch = attack.poison(attack_state, batch, key)
    if attack.info.order == 'poison_augment':
      batch = augmented(batch, clock)
    update_key = keys.stream(clock.key, 'update')
    attack_state, _ = attack.update(
      attack_state, classifier, model, batch, update_key
    )
    return attack_state, batch

  def objective(model, attack_state, batch, clock):
    key = keys.stream(clock.key, 'objective')
    return attack.objective(attack_state, classifier, model, batch, key)

  return descent(objective, optimizer, prepare=prepare, **length)
