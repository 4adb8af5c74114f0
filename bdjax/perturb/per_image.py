"""Perturbations of one's own for every image, found by signed descent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import checks
from bdjax.perturb import projections


def project_each(
  deltas: jax.Array, eps: float | jax.Array, norm: projections.Norm | None
) -> jax.Array:
  """Brings each of [b, ...] into the ball of radius eps; None = no ball."""
  if norm is None:
    return deltas
  return jax.vmap(lambda d: projections.project(d, eps, norm))(deltas)


def sign_descent(
  loss_fn: Callable[[jax.Array], jax.Array],
  deltas: jax.Array,
  *,
  step_size: float | jax.Array,
  eps: float | jax.Array,
  norm: projections.Norm | None,
  num_steps: int,
  images: jax.Array | None = None,
) -> jax.Array:
  """Projected signed-gradient descent (PGD), one perturbation per image.

    deltas ← project(deltas − step_size · sign(∇ loss(deltas)), eps, norm)

  The sign makes the sum or mean over the batch, and its size, immaterial; an
  image without gradient stays where it is.

  Space:       pixel [0, 1]; with `images`, image and perturbation together
               stay in it, otherwise the loss decides whether sums are clipped.
  Guarantees:  - every result is inside its own ball.
               - images do not see each other where the loss is a sum of terms
                 of single images.
  Cost:        one forward and backward pass per step; no gradient with respect
               to weights.

  Args:
    loss_fn: deltas [b, h, w, c] -> scalar to minimize.
    deltas: where to start, [b, h, w, c].
    step_size: in [0, 1] units, may be traced.
    eps: radius in [0, 1] units, may be traced.
    norm: 'linf' | 'l2' | 'l1', per image; None = no ball.
    num_steps: static.
    images: [b, h, w, c] in [0, 1] that the perturbations belong to, which are
      then also brought back so that no sum leaves [0, 1]; None = no such box.

  Returns:
    [b, h, w, c].

  Raises:
    ValueError: if a size is negative, `num_steps` is not positive, or the norm
      is unknown.
  """
  checks.positive(num_steps=num_steps)
  checks.non_negative(step_size=step_size)
  if norm is not None:
    checks.one_of(projections.NORMS, norm=norm)
    checks.pixel_budget(norm, eps=eps)

  def step(deltas, _):
    moved = deltas - step_size * jnp.sign(jax.grad(loss_fn)(deltas))
    moved = project_each(moved, eps, norm)
    if images is not None:
      moved = jnp.clip(images + moved, 0, 1) - images
    return moved, None

  return jax.lax.scan(step, deltas, None, length=num_steps)[0]
