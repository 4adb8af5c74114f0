"""Learning-rate schedules: functions of the clock, not of a counter of ours.

A `types.Clock` says which step and epoch it is and how long the phase lasts,
so a schedule needs no state and cannot drift from the loop. Rates may be
traced; lengths and boundaries are static.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bdjax import checks, types

Schedule = Callable[[types.Clock], jax.Array]


def constant(lr: float | jax.Array) -> Schedule:
  """The same learning rate at every step.

  Args:
    lr: learning rate, may be traced.

  Returns:
    clock -> float32 [].

  Raises:
    ValueError: if the rate is negative.
  """
  checks.non_negative(lr=lr)

  def schedule(clock: types.Clock) -> jax.Array:
    del clock
    return jnp.asarray(lr, jnp.float32)

  return schedule


def cosine_epochs(lr: float | jax.Array, t_max: int | None = None) -> Schedule:
  """Cosine annealing that moves once per epoch.

  In epoch e (from 0) the rate is lr/2 · (1 + cos(π e / t_max)), constant
  within the epoch. `t_max` beyond the number of epochs stops half-way, as the
  benchmark's 50-epoch runs with t_max 100 do; below it the rate rises again.

  Args:
    lr: learning rate of epoch 0, may be traced.
    t_max: epochs from `lr` down to 0; None = the epochs of the phase.

  Returns:
    clock -> float32 [].

  Raises:
    ValueError: if the rate is negative or `t_max` is not positive.

  Example:
    >>> schedule = cosine_epochs(0.01, 100)
    >>> clock = types.Clock(jax.random.key(0), 0, 50, 1000, 100)
    >>> round(float(schedule(clock)), 6)
    0.005
  """
  checks.non_negative(lr=lr)
  checks.positive(t_max=t_max)

  def schedule(clock: types.Clock) -> jax.Array:
    length = clock.num_epochs if t_max is None else t_max
    return lr * _half_cosine(clock.epoch, length)

  return schedule


def cosine_steps(lr: float | jax.Array, t_max: int) -> Schedule:
  """Cyclic cosine that moves at every step, with period 2·t_max.

  At step k (from 0) the rate is lr/2 · (1 + cos(π k / t_max)): down to 0 after
  `t_max` steps and up again to `lr` after as many. The benchmark's FT-SAM
  steps its cosine per iteration, which amounts to this.

  Args:
    lr: learning rate of step 0, may be traced.
    t_max: steps from `lr` down to 0.

  Returns:
    clock -> float32 [].

  Raises:
    ValueError: if the rate is negative or `t_max` is not positive.
  """
  checks.non_negative(lr=lr)
  checks.positive(t_max=t_max)

  def schedule(clock: types.Clock) -> jax.Array:
    return lr * _half_cosine(clock.step, t_max)

  return schedule


def step_epochs(
  lr: float | jax.Array,
  boundaries: Sequence[int],
  factor: float | jax.Array = 0.1,
) -> Schedule:
  """Multiplies the rate by `factor` when an epoch of `boundaries` begins.

  Args:
    lr: learning rate before the first boundary, may be traced.
    boundaries: increasing epochs, counted from 0; the boundary epoch itself
      already runs at the new rate. Empty = constant.
    factor: multiplier per boundary, may be traced.

  Returns:
    clock -> float32 [].

  Raises:
    ValueError: if a rate is negative or the boundaries do not increase.
  """
  checks.non_negative(lr=lr, factor=factor)
  boundaries = tuple(boundaries)
  if list(boundaries) != sorted(set(boundaries)):
    raise ValueError(
      f'`boundaries={boundaries}` must increase; list each epoch once, in '
      'order.'
    )

  def schedule(clock: types.Clock) -> jax.Array:
    rate = jnp.asarray(lr, jnp.float32)
    for boundary in boundaries:
      rate = jnp.where(clock.epoch >= boundary, factor * rate, rate)
    return rate

  return schedule


def _half_cosine(count: int | jax.Array, length: int) -> jax.Array:
  """(1 + cos(π count / length)) / 2, written so that float32 keeps its tail.

  The square of the half angle's cosine does not cancel near 0, and reducing
  the count first keeps the angle small on long runs.
  """
  phase = jnp.mod(jnp.asarray(count), 2 * length).astype(jnp.float32)
  return jnp.cos(jnp.pi / 2 * phase / length) ** 2
