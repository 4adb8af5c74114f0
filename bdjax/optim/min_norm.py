"""The convex combination of two gradients that is shortest."""

import jax
import jax.numpy as jnp

from bdjax import tree, types

_LARGEST = 0.999  # as published; no task is dropped altogether


def min_norm_weight(first: types.PyTree, second: types.PyTree) -> jax.Array:
  """γ of the shortest γ·g₁ + (1 − γ)·g₂, a direction that serves both losses.

  With a = ⟨g₁, g₁⟩, b = ⟨g₁, g₂⟩ and c = ⟨g₂, g₂⟩:

    γ = 0.999 if b ≥ a,  0.001 if b ≥ c,  else (c − b) / (a + c − 2b)

  Where neither is far longer than the other, the combination has the same
  inner product with both.

  Args:
    first: g₁, a tree of gradients.
    second: g₂, a tree like it.

  Returns:
    γ, float32 [] in [0.001, 0.999].

  Example:
    >>> float(min_norm_weight(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    0.5

  References:
    Sener & Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS
    2018.
    ebagdasa/backdoors101: utils/min_norm_solvers.py
  """
  a, b, c = (
    tree.dot(x, y)
    for x, y in ((first, first), (first, second), (second, second))
  )
  gap = a + c - 2 * b  # ‖g₁ − g₂‖², 0 only where the first case holds
  inner = (c - b) / jnp.where(gap > 0, gap, 1)
  edge = jnp.where(b >= c, 1 - _LARGEST, inner)
  return jnp.where(b >= a, _LARGEST, edge)
