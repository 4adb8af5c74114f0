"""Clipping to pixel range with a gradient that saturated pixels keep."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def clip_unit(x: jax.Array) -> jax.Array:
  """Clips to [0, 1]; the derivative is 1 on the closed interval, 0 outside.

  `jnp.clip` splits the gradient at the bounds; a black or white pixel
  under a zero perturbation then has half of it. Here it has all of it, as in
  torch. Forward and reverse mode, to any order.

  Args:
    x: array of any shape.

  Returns:
    The clipped array.

  Example:
    >>> jax.vmap(jax.grad(clip_unit))(jnp.array([-0.1, 0.0, 1.0, 1.1])).tolist()
    [0.0, 1.0, 1.0, 0.0]
  """
  return jnp.clip(x, 0, 1)


@clip_unit.defjvp
def _clip_unit_jvp(primals, tangents):
  """The tangent passes wherever the primal is in the closed interval."""
  (x,), (t,) = primals, tangents
  inside = (x >= 0) & (x <= 1)
  return clip_unit(x), jnp.where(inside, t, jnp.zeros_like(t))
