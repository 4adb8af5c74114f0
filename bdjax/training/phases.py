"""Phases that many methods share: fit a tree, tune a model, implant."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from bdjax import keys, types
from bdjax.training import losses


class FitState(NamedTuple):
  """State of a phase made by `fit`.

  Attributes:
    trained: the tree that the optimizer moves.
    rest: everything else that the steps carry along.
    opt_state: the optimizer's state.
  """

  trained: types.PyTree
  rest: types.PyTree
  opt_state: Any


def fit(
  start: Callable[[jax.Array, types.Carry], tuple[Any, Any]],
  objective: Callable[..., tuple[jax.Array, Any]],
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  finish: Callable[[Any, Any], types.Carry],
  prepare: Callable[..., tuple[Any, types.Batch]] | None = None,
  constrain: Callable[[Any, Any], Any] | None = None,
  **length: Any,
) -> types.Phase:
  """A phase whose step is one optimizer update of any tree.

  What is trained may be all weights, some of them, masks or a polarizer; what
  is not in `trained` cannot move by decay or by mistake.

  Args:
    start: (key, Carry) -> (trained, rest).
    objective: (trained, rest, batch, clock) -> (loss, (metrics, rest)); its
      `rest` is that of the next step.
    optimizer: its `update` gets the keyword arguments `clock` and `grad_fn`:
      (trained, i) -> gradients on the same batch.
    finish: (trained, rest) -> Carry.
    prepare: (trained, rest, batch, clock) -> (rest, batch) before the step,
      such as a search for adversarial images; no gradient passes it.
    constrain: (trained, rest) -> trained, a projection after the update.
    **length: the remaining fields of the `Phase`: name, num_epochs, ….

  Returns:
    The phase; its metrics are `loss`, before the update, and the objective's.
  """

  def init(key: jax.Array, carry: types.Carry) -> FitState:
    trained, rest = start(key, carry)
    return FitState(trained, rest, optimizer.init(trained))

  def step(state: FitState, batch: types.Batch, clock: types.Clock):
    trained, rest, opt_state = state
    if prepare is not None:
      rest, batch = prepare(trained, rest, batch, clock)
    loss_fn = lambda tree: objective(tree, rest, batch, clock)
    grad_fn = lambda tree, i: jax.grad(loss_fn, has_aux=True)(tree)[0]
    (loss, (metrics, rest)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      trained
    )
    updates, opt_state = optimizer.update(
      grads, opt_state, trained, clock=clock, grad_fn=grad_fn
    )
    trained = optax.apply_updates(trained, updates)
    if constrain is not None:
      trained = constrain(trained, rest)
    return FitState(trained, rest, opt_state), {'loss': loss, **metrics}

  return types.Phase(
    init=init,
    step=step,
    finish=lambda state: finish(state.trained, state.rest),
    **length,
  )


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
    **length: the remaining fields of the `Phase`, and `constrain` of `fit`.

  Returns:
    The phase; its metrics are `loss` and `accuracy` before the update.
  """

  def model_of(params, rest):
    return types.ModelState(params=params, batch_stats=rest[0])

  def start(key, carry):
    del key
    return carry.model.params, (carry.model.batch_stats, carry.extra)

  def prepared(params, rest, batch, clock):
    assert prepare is not None
    extra, batch = prepare(rest[1], model_of(params, rest), batch, clock)
    return (rest[0], extra), batch

  def loss(params, rest, batch, clock):
    value, (logits, new) = objective(
      model_of(params, rest), rest[1], batch, clock
    )
    accuracy = losses.accuracy(logits, batch['label'])
    return value, ({'accuracy': accuracy}, (new.batch_stats, rest[1]))

  return fit(
    start,
    loss,
    optimizer,
    finish=lambda params, rest: types.Carry(
      model=model_of(params, rest), extra=rest[1]
    ),
    prepare=prepared if prepare is not None else None,
    **length,
  )


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


class Remembered(NamedTuple):
  """The extra that a phase made by `remember` leaves behind.

  Attributes:
    model: the model the phase started from.
    extra: the extra it would have left without.
  """

  model: types.ModelState
  extra: types.PyTree


def remember(phase: types.Phase) -> types.Phase:
  """The same phase, which also hands on the model it started from.

  Args:
    phase: one that hands on what it finds in `Carry.extra`, such as those of
      `supervised`.

  Returns:
    The phase; the next one finds a `Remembered` in `Carry.extra`.
  """

  def init(key: jax.Array, carry: types.Carry):
    extra = Remembered(model=carry.model, extra=carry.extra)
    return phase.init(key, types.Carry(model=carry.model, extra=extra))

  return phase._replace(init=init)


def keep_optimizer(phase: types.Phase, name: str) -> types.Phase:
  """The same phase, whose optimizer goes on where one of that name stopped.

  Args:
    phase: made by `fit`, on carries whose extra is a dict.
    name: entry of `extra['optimizers']`.

  Returns:
    The phase; its optimizer starts afresh where there is no such entry.
  """

  def init(key: jax.Array, carry: types.Carry) -> FitState:
    state = phase.init(key, carry)
    kept = carry.extra.get('optimizers', {})
    return state._replace(opt_state=kept.get(name, state.opt_state))

  def finish(state: FitState) -> types.Carry:
    carry = phase.finish(state)
    kept = {**carry.extra.get('optimizers', {}), name: state.opt_state}
    return types.Carry(
      model=carry.model, extra={**carry.extra, 'optimizers': kept}
    )

  return phase._replace(init=init, finish=finish)


def shortened(phase: types.Phase, **taken: int) -> types.Phase:
  """The same phase, less the epochs that one before it takes.

  Args:
    phase: of a length in epochs.
    **taken: those epochs, under the hyper-parameter's name.

  Returns:
    The phase.

  Raises:
    ValueError: if no epoch is left.

  Example:
    >>> phase = types.Phase('implant', None, None, None, num_epochs=20)
    >>> shortened(phase, mask_epochs=5).num_epochs
    15
  """
  ((name, epochs),) = taken.items()
  if epochs >= phase.num_epochs:
    raise ValueError(
      f'`{name}={epochs}` leaves no epoch of {phase.num_epochs} for the phase '
      f"'{phase.name}'; train longer or lower it."
    )
  return phase._replace(num_epochs=phase.num_epochs - epochs)


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
    augment: (images, keys [b]) -> images, or None; an attack that has an
      `augment` of its own uses that.
    **length: the remaining fields of the `Phase`; `augment` is not among them.

  Returns:
    The phase.
  """
  change = attack.augment or augment

  def augmented(batch, clock):
    if change is None:
      return batch
    key = keys.stream(clock.key, 'augment')
    per_example = keys.per_example(key, batch['index'])
    return {**batch, 'image': change(batch['image'], per_example)}

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


def attack_phases(
  classifier: types.Classifier,
  attack: types.Attack,
  optimizer: optax.GradientTransformationExtraArgs,
  **options: Any,
) -> tuple[types.Phase, ...]:
  """All phases of an attack that is carried out: `implant` and its own ones.

  Args:
    classifier: the network.
    attack: what to implant.
    optimizer: see `descent`.
    **options: the remaining arguments of `implant`; `num_epochs` is the length
      of all phases together.

  Returns:
    The phases; the last one is the training whose result is kept.
  """
  phase = implant(classifier, attack, optimizer, **options)
  if attack.phases is None:
    return (phase,)
  return attack.phases(classifier, phase)
