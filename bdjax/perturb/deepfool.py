"""DeepFool towards a class: a short way across one decision boundary."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import checks

_TINY = 1e-12


def deepfool(
  predict: Callable[[jax.Array], jax.Array],
  image: jax.Array,
  target: int | jax.Array,
  *,
  max_steps: int = 200,
  overshoot: float = 0.02,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Walks from an image to a class along linearized boundaries.

  With c the class of the image and f = F_t − F_c the gap of two logits,

    r ← r + |f| ∇f / ‖∇f‖²    at    x + (1 + overshoot)·r

  until the class there is t. Where f has no gradient the walk stays; where a
  step would leave the finite numbers it ends, not converged.

  Space:       pixel [0, 1] at the start; the walk is not clipped.
  Guarantees:  - an image of the target class is left alone.
               - where it converged, the class at the end is the target.
               - the perturbation is finite.
  Cost:        one forward and backward pass per step, whatever the number of
               classes: the gradient of a difference of two logits.

  Args:
    predict: image [h, w, c] -> logits [n], frozen.
    image: where to start, [h, w, c].
    target: class t, may be traced.
    max_steps: static.
    overshoot: how far beyond each linearized boundary, as a share.

  Returns:
    (perturbation (1 + overshoot)·r [h, w, c]; whether it converged, bool [];
    steps taken, int32 []).

  Raises:
    ValueError: if `max_steps` is not positive or the overshoot negative.

  Example:
    >>> predict = lambda x: jnp.stack([x.sum(), 1.0 - x.sum()])
    >>> r, converged, steps = deepfool(predict, jnp.ones((1, 1, 2)), 1)
    >>> [round(float(x), 3) for x in r.ravel()], bool(converged), int(steps)
    ([-0.765, -0.765], True, 1)
  """
  checks.positive(max_steps=max_steps)
  checks.non_negative(overshoot=overshoot)
  start = jnp.argmax(predict(image))
  reach = 1 + overshoot

  def gap(x):
    logits = predict(x)
    has_arrived = jnp.argmax(logits) == target
    return logits[target] - logits[start], has_arrived

  def is_going(state):
    _, has_arrived, steps = state
    return ~has_arrived & (steps < max_steps)

  def step(state):
    r, _, steps = state
    (value, has_arrived), w = jax.value_and_grad(gap, has_aux=True)(
      image + reach * r
    )
    length = jnp.abs(value) / jnp.maximum(jnp.sum(w**2), _TINY)
    moved = r + length * w
    is_lost = ~jnp.all(jnp.isfinite(moved)) & ~has_arrived
    steps = jnp.where(is_lost, max_steps, steps + ~has_arrived)
    return jnp.where(has_arrived | is_lost, r, moved), has_arrived, steps

  first = (jnp.zeros_like(image), start == target, jnp.int32(0))
  r, _, steps = jax.lax.while_loop(is_going, step, first)
  logits = predict(image + reach * r)
  # The largest of NaN would be class 0, and of some networks the target.
  converged = jnp.all(jnp.isfinite(logits)) & (jnp.argmax(logits) == target)
  return reach * r, converged, steps
