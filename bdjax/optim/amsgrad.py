"""AMSGrad as torch computes it, which is not as optax does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, types
from bdjax.optim import schedules
from bdjax.optim.sgd import scale_by_clock


class AmsgradState(NamedTuple):
  """State of `scale_by_amsgrad`.

  Attributes:
    count: int32 [], updates so far.
    mu: first moments.
    nu: second moments.
    nu_max: largest second moments so far, without bias correction.
  """

  count: jax.Array
  mu: types.PyTree
  nu: types.PyTree
  nu_max: types.PyTree


def scale_by_amsgrad(
  b1: float | jax.Array = 0.9,
  b2: float | jax.Array = 0.999,
  eps: float = 1e-8,
) -> optax.GradientTransformation:
  """Adam's direction, divided by the largest second moment so far.

    m ← b1·m + (1 − b1)·g,   v ← b2·v + (1 − b2)·g²,   v̂ ← max(v̂, v)
    update = m / (1 − b1ᵗ) / (√(v̂ / (1 − b2ᵗ)) + eps)

  The maximum is taken over *raw* moments and corrected when it is read.
  `optax.amsgrad` takes it over corrected ones, whose first value g₁² is then a
  floor of the denominator for the whole run: on the short runs of defenses its
  steps are smaller.

  Args:
    b1: decay of the first moment, may be traced.
    b2: decay of the second moment, may be traced.
    eps: added to the root.

  Returns:
    A transformation; scale it by a rate.

  References:
    Reddi et al., On the Convergence of Adam and Beyond, ICLR 2018.
  """
  checks.unit_interval(b1=b1, b2=b2)

  def init(params) -> AmsgradState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return AmsgradState(jnp.zeros((), jnp.int32), zeros, zeros, zeros)

  def update(updates, state, params=None):
    del params
    count = state.count + 1
    blend = lambda old, new, b: jax.tree.map(
      lambda x, y: b * x + (1 - b) * y, old, new
    )
    mu = blend(state.mu, updates, b1)
    nu = blend(state.nu, jax.tree.map(jnp.square, updates), b2)
    nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
    first, second = 1 - b1**count, 1 - b2**count
    updates = jax.tree.map(
      lambda m, v: m / first / (jnp.sqrt(v / second) + eps), mu, nu_max
    )
    return updates, AmsgradState(count, mu, nu, nu_max)

  return optax.GradientTransformation(init, update)


def amsgrad(
  schedule: schedules.Schedule,
  *,
  b1: float | jax.Array = 0.9,
  b2: float | jax.Array = 0.999,
  weight_decay: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """AMSGrad with a clocked rate and coupled decay.

  Args:
    schedule: clock -> learning rate.
    b1: decay of the first moment.
    b2: decay of the second moment.
    weight_decay: added to the gradient, before the moments.

  Returns:
    A transformation called as `update(grads, state, params, clock=clock)`.

  Raises:
    TypeError: if `schedule` is a number.
    ValueError: for a negative decay or moments' decays outside [0, 1].
  """
  checks.non_negative(weight_decay=weight_decay)
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    scale_by_amsgrad(b1, b2),
    scale_by_clock(schedule),
  )
