"""Implicit hypergradients: through the fixed point of an inner map.

With δ*(θ) a fixed point of Φ(δ, θ), the total derivative of an outer loss is

  dF/dθ = ∂F/∂θ + (∂Φ/∂θ)ᵀ v,   v = (∂Φ/∂δ)ᵀ v + ∂F/∂δ.

`num_steps` iterations from v = 0 sum as many terms of the Neumann series for v.
Where Φ is no contraction the series diverges and their number is part of the
definition, not a matter of precision.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import checks, tree, types


def hypergradient(
  fixed_point_map: Callable[[Any, Any], Any],
  outer_loss: Callable[[Any, Any], jax.Array],
  delta: types.PyTree,
  theta: types.PyTree,
  *,
  num_steps: int,
) -> tuple[types.PyTree, dict[str, jax.Array]]:
  """The gradient of an outer loss, inner solution included.

  Nothing here looks for the fixed point: `delta` is taken as it is, and so are
  all derivatives.

  Cost: one linearization of the map, which holds second-order terms where the
  map is a descent step, and num_steps + 1 pullbacks through it.

  Args:
    fixed_point_map: (delta, theta) -> delta, such as one descent step of the
      inner loss.
    outer_loss: (delta, theta) -> scalar.
    delta: the inner solution, any tree.
    theta: what the outer loss is minimized over, any tree.
    num_steps: terms of the series; 1 leaves ∂F/∂δ itself as v.

  Returns:
    dF/dθ, and {'loss', 'residual'}: the outer loss, and the norm of the last
    term of the series.

  Raises:
    ValueError: if `num_steps` is not positive.

  Example:
    >>> descend = lambda d, t: d - 0.5 * (d - t)  # towards d = t
    >>> outer = lambda d, t: 0.5 * (d - 3) ** 2
    >>> grad, _ = hypergradient(descend, outer, 1.0, 1.0, num_steps=2)
    >>> float(grad)  # (1 − 3)(1 − 0.5²)
    -1.5

  References:
    Grazzi et al., On the Iteration Complexity of Hypergradient Computation,
    ICML 2020.
  """
  checks.positive(num_steps=num_steps)
  delta, theta = jax.tree.map(jnp.asarray, (delta, theta))
  loss, (direct_delta, direct_theta) = jax.value_and_grad(outer_loss, (0, 1))(
    delta, theta
  )
  _, pullback = jax.vjp(fixed_point_map, delta, theta)

  def step(v, _):
    # The other half of the pullback is unused here and compiled away.
    term = pullback(v)[0]
    new = tree.add(term, direct_delta)
    return new, tree.norm(tree.subtract(new, v))

  # The first of `num_steps` iterations, from v = 0, gives ∂F/∂δ.
  v, changes = jax.lax.scan(step, direct_delta, None, length=num_steps - 1)
  residual = changes[-1] if num_steps > 1 else tree.norm(direct_delta)
  indirect = pullback(v)[1]
  return tree.add(direct_theta, indirect), {'loss': loss, 'residual': residual}
