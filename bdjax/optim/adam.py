"""Adam with a rate that follows the clock."""

import jax
import optax

from bdjax.optim import schedules
from bdjax.optim.sgd import scale_by_clock


def adam(
  schedule: schedules.Schedule,
  *,
  b1: float | jax.Array = 0.9,
  b2: float | jax.Array = 0.999,
) -> optax.GradientTransformationExtraArgs:
  """Adam without decay, eps 1e-8 outside the root, as torch's.

  Args:
    schedule: clock -> learning rate.
    b1: decay of the first moment.
    b2: decay of the second moment.

  Returns:
    A transformation called as `update(grads, state, params, clock=clock)`.

  Raises:
    TypeError: if `schedule` is a number.
  """
  return optax.chain(optax.scale_by_adam(b1, b2), scale_by_clock(schedule))
