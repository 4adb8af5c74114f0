"""Universal perturbations: one tensor, shared by all images, found by descent.

What it is good for is the loss's business; here are only its random start and
the inner loop on one batch.
"""

from collections.abc import Callable
from typing import Any

import jax

from bdjax import checks
from bdjax.perturb import projections


def init_uniform(
  key: jax.Array,
  shape: tuple[int, ...],
  eps: float | jax.Array,
  norm: projections.Norm,
) -> jax.Array:
  """A random start: every entry from U[−eps, eps), then projected.

  Args:
    key: typed key.
    shape: shape of the perturbation, (h, w, c).
    eps: radius in [0, 1] units, may be traced.
    norm: 'linf' | 'l2' | 'l1'.

  Returns:
    float32 of that shape, inside the ball.

  Raises:
    TypeError: if the key is not typed.
    ValueError: as `project`.
  """
  checks.typed_key(key=key)
  checks.one_of(projections.NORMS, norm=norm)
  checks.pixel_budget(norm, eps=eps)
  draw = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
  return projections.project(eps * draw, eps, norm)


def universal_descent(
  loss_fn: Callable[[jax.Array], tuple[jax.Array, Any]],
  delta: jax.Array,
  *,
  lr: float | jax.Array,
  eps: float | jax.Array,
  norm: projections.Norm,
  num_inner: int,
) -> tuple[jax.Array, Any]:
  """Projected gradient descent on one batch, `num_inner` steps.

    delta ← project(delta − lr · ∇ loss(delta), eps, norm)

  The gradient itself, without sign or momentum.

  Space:       pixel [0, 1].
  Guarantees:  - the result is inside the ball.
               - num_inner steps are num_inner single calls.
  Cost:        one forward and backward pass per inner step; no gradient with
               respect to weights.

  Args:
    loss_fn: delta -> (loss to minimize, aux); put the loss into aux where it
      is to be logged.
    delta: the perturbation so far, [h, w, c].
    lr: step size, may be traced.
    eps: radius in [0, 1] units, may be traced.
    norm: 'linf' | 'l2' | 'l1'.
    num_inner: steps, static.

  Returns:
    The new perturbation and the aux of the first inner step, that is at the
    given `delta`, before any step.

  Raises:
    ValueError: if `num_inner` is not positive, lr is negative, or as
      `project`.
  """
  checks.positive(num_inner=num_inner)
  checks.non_negative(lr=lr)
  checks.one_of(projections.NORMS, norm=norm)
  checks.pixel_budget(norm, eps=eps)

  def step(delta, _):
    grad, aux = jax.grad(loss_fn, has_aux=True)(delta)
    return projections.project(delta - lr * grad, eps, norm), aux

  delta, aux = jax.lax.scan(step, delta, None, length=num_inner)
  return delta, jax.tree.map(lambda x: x[0], aux)
