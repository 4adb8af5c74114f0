"""SGD as the benchmarks run it: coupled decay, momentum, a clocked rate."""

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, types
from bdjax.optim import schedules


def sgd(
  schedule: schedules.Schedule,
  *,
  momentum: float | jax.Array = 0.9,
  weight_decay: float | jax.Array = 5e-4,
  nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Momentum SGD whose update takes the time of the step.

  With gradient g, momentum μ, decay λ and rate η(clock):

    v ← μ·v + (g + λ·w),   w ← w − η(clock)·v

  so the decay enters before the momentum and acts on every leaf, biases and
  BatchNorm scales included, and a change of the rate acts at once on the
  whole momentum (torch's convention).

  Args:
    schedule: clock -> learning rate; see `optim.schedules`.
    momentum: μ, may be traced.
    weight_decay: λ, may be traced.
    nesterov: whether the step looks one momentum ahead.

  Returns:
    A transformation called as `update(grads, state, params, clock=clock)`;
    other extra arguments are dropped.

  Raises:
    TypeError: if `schedule` is a number; at update, if `clock` is missing.
    ValueError: if momentum or decay is negative.

  Example:
    >>> tx = sgd(schedules.constant(0.1), momentum=0.0, weight_decay=0.0)
    >>> params = {'w': jnp.ones(2)}
    >>> clock = types.Clock(jax.random.key(0), 0, 0, 1, 1)
    >>> updates, _ = tx.update(params, tx.init(params), params, clock=clock)
    >>> [round(float(u), 6) for u in updates['w']]
    [-0.1, -0.1]
  """
  checks.non_negative(momentum=momentum, weight_decay=weight_decay)
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(momentum, nesterov=nesterov),
    scale_by_clock(schedule),
  )


def scale_by_clock(
  schedule: schedules.Schedule,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies updates by −schedule(clock); the last link of an optimizer.

  Args:
    schedule: clock -> learning rate.

  Returns:
    A stateless transformation whose update takes the keyword `clock`.

  Raises:
    TypeError: if `schedule` is a number; at update, if `clock` is missing.
  """
  if not callable(schedule):
    raise TypeError(
      f'`schedule={schedule}` is not a function of the clock; write '
      f'optim.constant({schedule}) for a fixed learning rate.'
    )

  def update(
    updates, state, params=None, *, clock: types.Clock | None = None, **extra
  ):
    del params, extra
    if clock is None:
      raise TypeError(
        'No `clock` given; the learning rate depends on it. Call '
        'update(grads, state, params, clock=clock).'
      )
    lr = schedule(clock)
    return jax.tree.map(lambda u: -jnp.asarray(lr, u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(_stateless, update)


def _stateless(params) -> optax.EmptyState:
  """Initial state of a transformation that has none."""
  del params
  return optax.EmptyState()
