"""Sharpness-aware minimization, plain and adaptive, around any optimizer.

The outer optimizer sees the gradient at the worst nearby weights but the
weights themselves where they are, so decay and momentum act at w.
"""

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, tree


def sam(
  base: optax.GradientTransformation,
  rho: float | jax.Array,
  *,
  adaptive: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """SAM (ASAM if `adaptive`) with `base` as the outer optimizer.

  With g = ∇L(w) and the perturbation ε of `asam_perturbation`:

    1. g̃ = ∇L(w + ε), by the caller's `grad_fn`;
    2. `base` steps from w with gradient g̃.

  The search for g̃ is optax's SAM in opaque mode; its outer optimizer is the
  identity, because optax hands that one no extra arguments, and `base` follows
  in the chain, where it gets all of them.

  Space:       weights; one norm over the whole tree.
  BN:          the caller's. FT-SAM: train-BN at w; batch-BN/no-update in
               `grad_fn`, which returns gradients only.
  Guarantees:  - rho = 0 is `base`.
               - weight decay and momentum of `base` act at w.
  Cost:        one forward and backward pass more than `base`; one copy of the
               weights.

  Args:
    base: outer optimizer, such as `optim.sgd(schedule)`.
    rho: radius of the perturbation, may be traced; 2 for ASAM on CIFAR-10.
    adaptive: whether the radius is measured relative to |w|.

  Returns:
    A transformation called as `update(grads, state, params, grad_fn=grad_fn,
    clock=clock)`: `grads` at `params`; grad_fn: (params, i) -> gradients on
    the same batch, called once, with i = 0; further arguments go to `base`.
    Under a stack vmap the whole update, or norms would mix models.

  Raises:
    ValueError: if rho is negative; at update, if `params` is missing.
    TypeError: at update, if `grad_fn` is missing.

  Example:
    >>> tx = sam(optax.sgd(0.1), rho=0.0)
    >>> grad_fn = jax.grad(lambda params, i: params['w'] ** 2)
    >>> params = {'w': jnp.array(1.0)}
    >>> updates, _ = tx.update(
    ...   grad_fn(params, 0), tx.init(params), params, grad_fn=grad_fn
    ... )
    >>> round(float(updates['w']), 6)
    -0.2

  References:
    Foret et al., Sharpness-Aware Minimization for Efficiently Improving
    Generalization, ICLR 2021. Kwon et al., ASAM, ICML 2021. Zhu et al.,
    Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
    Minimization, ICCV 2023.
  """
  return optax.chain(_nearby_gradient(rho, adaptive), base)


def asam_perturbation(
  rho: float | jax.Array, *, adaptive: bool = True, eps: float = 1e-12
) -> optax.GradientTransformation:
  """The negated worst perturbation of the weights to first order, stateless.

  The update is −ε (optax's SAM subtracts what its adversary returns), with
  products and powers element by element and one norm over the whole tree:

    adaptive:  ε = rho · w²·g / (‖w·g‖₂ + eps),   so that ‖ε/|w|‖₂ = rho
    plain:     ε = rho · g / (‖g‖₂ + eps),        so that ‖ε‖₂ = rho

  A weight of 0 is not perturbed by the adaptive form, nor anything by either
  form where the gradient is 0.

  Args:
    rho: radius, may be traced.
    adaptive: which of the two.
    eps: added to the norm.

  Returns:
    A stateless transformation; the adaptive form needs `params`.

  Raises:
    ValueError: if rho is negative; at update, if the adaptive form gets no
      `params`.
  """
  checks.non_negative(rho=rho)

  def init(params) -> optax.EmptyState:
    del params
    return optax.EmptyState()

  def update(updates, state, params=None):
    if adaptive:
      _need_params(params)
    # Once for the norm (w·g has that of |w|·g), once more for the direction.
    measured = _multiply(params, updates) if adaptive else updates
    factor = -rho / (tree.norm(measured) + eps)
    steps = _multiply(params, measured) if adaptive else updates
    return jax.tree.map(lambda s: (factor * s).astype(s.dtype), steps), state

  return optax.GradientTransformation(init, update)


def _multiply(a, b):
  """The product of two trees, element by element."""
  return jax.tree.map(jnp.multiply, a, b)


def _nearby_gradient(
  rho: float | jax.Array, adaptive: bool
) -> optax.GradientTransformationExtraArgs:
  """Replaces the gradient at w by the one at w + ε."""
  search = optax.contrib.sam(
    optax.identity(),
    asam_perturbation(rho, adaptive=adaptive),
    sync_period=2,
    opaque_mode=True,
  )

  def update(updates, state, params=None, *, grad_fn=None, **extra):
    del extra  # for the optimizer that follows
    _need_params(params)
    if grad_fn is None:
      raise TypeError(
        'No `grad_fn` given; SAM needs the gradient at other weights too. '
        'Call update(grads, state, params, grad_fn=grad_fn), with '
        'grad_fn(params, i) -> gradients on the same batch.'
      )
    return search.update(updates, state, params, grad_fn=grad_fn)

  return optax.GradientTransformationExtraArgs(search.init, update)


def _need_params(params) -> None:
  """Raises where an update was called without the weights."""
  if params is None:
    raise ValueError(
      'No `params` given; the perturbation depends on the weights. Call '
      'update(grads, state, params, …).'
    )
