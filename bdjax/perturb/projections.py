"""Projections of a perturbation onto norm balls in pixel space.

A perturbation is one tensor, usually [h, w, c]; its norm is taken over all
entries. For a batch or a stack of perturbations vmap these functions.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from bdjax import checks

Norm = Literal['linf', 'l2', 'l1']
NORMS = ('linf', 'l2', 'l1')

_TINY = 1e-12


def project(delta: jax.Array, eps: float | jax.Array, norm: Norm) -> jax.Array:
  """Brings a perturbation into the ball of radius eps.

    linf:    clip to [−eps, eps], entry by entry
    l2, l1:  delta · min(1, eps / (‖delta‖ + 1e-12))

  Guarantees:  - inside the ball, and unchanged if it was inside.
               - l2 and l1 keep the direction.
  Divergences: - the l1 case is radial, as in the re-activation paper's code,
                 and not the nearest point; that is `project_l1_exact`.

  Args:
    delta: perturbation of any shape, in [0, 1] units; one norm for all of it.
    eps: radius in [0, 1] units, may be traced.
    norm: 'linf' | 'l2' | 'l1'.

  Returns:
    The projected perturbation.

  Raises:
    ValueError: for an unknown norm, a negative radius, or an linf radius in
      0–255 units.

  Example:
    >>> project(jnp.array([3.0, 4.0]), 1.0, 'l2').round(6).tolist()
    [0.6000000238418579, 0.800000011920929]
  """
  checks.one_of(NORMS, norm=norm)
  checks.pixel_budget(norm, eps=eps)
  if norm == 'linf':
    return jnp.clip(delta, -eps, eps)
  length = _length(delta, norm)
  return delta * jnp.minimum(1, eps / (length + _TINY))


def project_l1_exact(delta: jax.Array, eps: float | jax.Array) -> jax.Array:
  """The nearest point of the l1 ball: soft thresholding by a common amount.

  Outside the ball, entries shrink to sign(d)·max(|d| − τ, 0) with the τ that
  makes the l1 norm eps; small entries become exactly 0. Inside it, τ = 0.

  Args:
    delta: perturbation of any shape, in [0, 1] units.
    eps: radius in [0, 1] units, may be traced.

  Returns:
    The projected perturbation.

  Raises:
    ValueError: for a negative radius.

  References:
    Duchi et al., Efficient Projections onto the l1-Ball for Learning in High
    Dimensions, ICML 2008.
  """
  checks.pixel_budget('l1', eps=eps)
  size = jnp.sort(jnp.abs(delta).ravel(), descending=True)
  excess = jnp.cumsum(size) - eps
  count = jnp.arange(1, size.size + 1)
  # The entries that stay above the threshold they would imply; at least one,
  # so that a radius of 0 has a threshold too.
  num_kept = jnp.maximum(jnp.sum(size * count > excess), 1)
  threshold = jnp.maximum(excess[num_kept - 1] / num_kept, 0)
  nearest = jnp.sign(delta) * jnp.maximum(jnp.abs(delta) - threshold, 0)
  # The threshold is rounded in units of the largest entry, which may be far
  # above eps; a last radial touch keeps the result inside the ball.
  return project(nearest, eps, 'l1')


def _length(delta: jax.Array, norm: Norm) -> jax.Array:
  """The l2 or l1 norm over all entries."""
  if norm == 'l2':
    return jnp.sqrt(jnp.sum(delta**2))
  return jnp.sum(jnp.abs(delta))
