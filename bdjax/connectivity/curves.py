"""Curves with one bend between two models, for which the middle is free."""

from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from bdjax import checks

Curve = Literal['bezier', 'chain']
CURVES = ('bezier', 'chain')

_T = TypeVar('_T')


def curve_weights(t: float | jax.Array, curve: str = 'bezier') -> jax.Array:
  """Weights of start, middle and end at a position of a curve.

    bezier: (1 − t)², 2t(1 − t), t²
    chain:  straight to the middle at t = ½, straight on to the end

  Args:
    t: position in [0, 1], may be traced.
    curve: 'bezier' | 'chain'.

  Returns:
    [3], adding up to 1.

  Raises:
    ValueError: for an unknown curve or a position outside [0, 1].

  Example:
    >>> curve_weights(0.5).tolist()
    [0.25, 0.5, 0.25]
  """
  checks.one_of(CURVES, curve=curve)
  checks.unit_interval(t=t)
  t = jnp.asarray(t, jnp.float32)
  if curve == 'bezier':
    return jnp.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])
  start, end = jnp.maximum(1 - 2 * t, 0), jnp.maximum(2 * t - 1, 0)
  return jnp.stack([start, 1 - start - end, end])


def curve_point(
  start: _T, middle: _T, end: _T, t: float | jax.Array, curve: str = 'bezier'
) -> _T:
  """The tree at a position of a curve; exactly an end at t = 0 and t = 1.

  Args:
    start: tree at t = 0.
    middle: control point.
    end: tree at t = 1.
    t: position in [0, 1], may be traced.
    curve: 'bezier' | 'chain'.

  Returns:
    A tree like them.
  """
  w = curve_weights(t, curve)
  return jax.tree.map(
    lambda a, m, b: w[0] * a + w[1] * m + w[2] * b, start, middle, end
  )
