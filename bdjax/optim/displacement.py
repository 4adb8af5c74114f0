"""A displacement of fixed length towards other weights."""

import jax
import jax.numpy as jnp

from bdjax import checks, tree, types

_EPS = 1e-12  # added to the distance


def displacement(
  params: types.PyTree,
  anchor: types.PyTree,
  rho: float | jax.Array,
  *,
  is_capped: bool = False,
) -> types.PyTree:
  """The vector e that moves weights by ρ towards an anchor.

    e = ρ·(anchor − params) / (‖anchor − params‖₂ + 1e-12)

  with one norm over the whole tree. Its length is ρ however near the anchor
  is, so that params + e may lie behind it; where both are equal, e is 0.

  Args:
    params: the weights.
    anchor: a tree of the same shapes.
    rho: length, may be traced.
    is_capped: whether ρ is at most the distance, so that params + e never
      passes the anchor.

  Returns:
    A tree like `params`, constant under differentiation.

  Raises:
    ValueError: if rho is negative.

  Example:
    >>> e = displacement({'w': jnp.zeros(2)}, {'w': jnp.array([3.0, 4.0])}, 0.5)
    >>> [round(float(x), 6) for x in e['w']]
    [0.3, 0.4]
  """
  checks.non_negative(rho=rho)
  # Stopped before the norm, whose derivative at 0 is not finite.
  gap = jax.lax.stop_gradient(tree.subtract(anchor, params))
  distance = tree.norm(gap)
  length = jnp.minimum(rho, distance) if is_capped else rho
  factor = jax.lax.stop_gradient(length / (distance + _EPS))
  return jax.tree.map(lambda g: (factor * g).astype(g.dtype), gap)
