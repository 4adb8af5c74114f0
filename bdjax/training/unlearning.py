"""Unlearning of a trigger: batches that carry it under true labels, rounds."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from bdjax import keys, perturb, types
from bdjax.training import inversion, phases

_KEPT = ('generator', 'mask', 'target')  # what is left in the extra


def alternate(
  classifier: types.Classifier,
  hp: inversion.GeneratorHParams,
  unlearn: Callable[[int], types.Phase],
  rounds: int,
) -> tuple[types.Phase, ...]:
  """Rounds of inverting the trigger and unlearning what was found.

  Args:
    classifier: the network; it has the tap 'penultimate_map'.
    hp: hyper-parameters of the inversion.
    unlearn: number of the round, from 1 -> its phase, made by `phases.fit`;
      the optimizer of the first goes on in all others.
    rounds: how many.

  Returns:
    'pretrain' and, per round, the phases of `inversion.invert_trigger` and the
    one that unlearns. The extra of the last holds 'generator', 'mask' and
    'target'.

  Raises:
    Unsupported: if the network has no tap 'penultimate_map'.
    ValueError: for a bad hyper-parameter of the inversion.
  """
  made = [inversion.pretrain_generator(classifier, hp)]
  for number in range(1, rounds + 1):
    made += inversion.invert_trigger(classifier, hp, number)
    made.append(phases.keep_optimizer(unlearn(number), 'model'))
  return (*made[:-1], _tidied(made[-1]))


def tune_mixed(
  change: Callable[..., jax.Array],
  objective: Callable[..., tuple[jax.Array, Any]],
  optimizer: optax.GradientTransformationExtraArgs,
  *,
  share: float,
  **length: Any,
) -> types.Phase:
  """A phase that tunes all parameters on batches of which a share is changed.

  Args:
    change: (extra, images, key, index) -> images of the same shape; what puts a
      trigger, or what is taken for one, on ⌊share·b⌋ + 1 images of a batch. The
      key is the step's own, `index` names the images as the batch does.
    objective: (model, extra, batch) -> (loss, (metrics, ModelState)); the batch
      also holds 'mixed', its images after the change, and the returned state
      the running statistics to go on with.
    optimizer: see `phases.fit`.
    share: in (0, 1], static.
    **length: the remaining fields of the `Phase`, other than what it reads:
      clean images, augmented, whose short last batch wraps round.

  Returns:
    The phase; it hands on the extra that it finds. Metrics: `loss` and the
    objective's.
  """

  def model_of(params, rest):
    return types.ModelState(params=params, batch_stats=rest[0])

  def start(key, carry):
    del key
    return carry.model.params, (carry.model.batch_stats, carry.extra)

  def prepare(params, rest, batch, clock):
    del params
    key = keys.stream(clock.key, 'change')
    change_rows = lambda images, rows: change(
      rest[1], images, key, batch['index'][rows]
    )
    mixed = perturb.replace_share(
      keys.stream(clock.key, 'mix'), batch['image'], change_rows, share
    )
    return rest, {**batch, 'mixed': mixed}

  def loss(params, rest, batch, clock):
    del clock
    value, (metrics, new) = objective(model_of(params, rest), rest[1], batch)
    return value, (metrics, (new.batch_stats, rest[1]))

  return phases.fit(
    start,
    loss,
    optimizer,
    prepare=prepare,
    finish=lambda params, rest: types.Carry(
      model=model_of(params, rest), extra=rest[1]
    ),
    reads='clean',
    augment=True,
    drop_last=False,
    **length,
  )


def _tidied(phase: types.Phase) -> types.Phase:
  """The phase without what only further rounds would need."""

  def finish(state) -> types.Carry:
    carry = phase.finish(state)
    return types.Carry(
      model=carry.model, extra={name: carry.extra[name] for name in _KEPT}
    )

  return phase._replace(finish=finish)
