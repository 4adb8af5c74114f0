"""Polarizers: light layers put into a finished network, identities at first.

A polarizer keeps the shape of the activation it stands at. It has weights and
running statistics of its own, apart from those of the network around it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, types
from bdjax.models import norm

Form = Literal['convbn', 'onlyconv', 'linear', 'linear_light', 'mlp', 'twoconv']
FORMS = ('convbn', 'onlyconv', 'linear', 'linear_light', 'mlp', 'twoconv')

_EPS = 1e-5


class Polarizer(NamedTuple):
  """A layer as pure functions.

  Attributes:
    init: (h, w, c) of the activation -> ModelState; there is no randomness.
    apply: (state, x [b, h, w, c], *, train=False) -> (y of the same shape,
      ModelState with new running statistics when `train`).
  """

  init: Callable[[tuple[int, ...]], types.ModelState]
  apply: Callable[..., tuple[jax.Array, types.ModelState]]


def polarizer(
  form: Form = 'convbn', *, residual: bool = False, norm_decay: float = 0.9
) -> Polarizer:
  """Makes a polarizer.

    convbn:        BatchNorm of a 1×1 convolution c → c without bias
    onlyconv:      the convolution alone
    linear:        x·w + b, one pair of numbers per entry of the activation
    linear_light:  the same, one pair per channel
    mlp:           linear, ReLU, linear, entry by entry
    twoconv:       convbn twice

  Args:
    form: one of `FORMS`.
    residual: whether the input is added to the output. The last factor, γ of
      a norm or the weights, then starts at 0, so that this too is an identity.
    norm_decay: weight of the old running statistics in one update.

  Returns:
    The polarizer. At the start it is the identity: up to the eps of its norms,
    and for 'mlp' on activations that are nowhere negative.

  Raises:
    ValueError: for an unknown form.
  """
  checks.one_of(FORMS, form=form)

  def init(shape: tuple[int, ...]) -> types.ModelState:
    parts = _start(form, shape)
    if residual:
      parts[-1] = _muted(parts[-1])
    return types.ModelState(
      params={f'part{i}': part for i, part in enumerate(parts)},
      batch_stats={
        f'part{i}': {'mean': jnp.zeros(shape[-1:]), 'var': jnp.ones(shape[-1:])}
        for i, part in enumerate(parts)
        if 'scale' in part
      },
    )

  def apply(state: types.ModelState, x: jax.Array, *, train: bool = False):
    y, stats = x, {}
    for i, name in enumerate(sorted(state.params)):
      if form == 'mlp' and i:
        y = jax.nn.relu(y)
      part = state.params[name]
      if 'kernel' in part:
        y = jnp.einsum('bhwi,io->bhwo', y, part['kernel'])
      if 'scale' in part:
        y, stats[name] = _normalize(
          y, part, state.batch_stats[name], train, norm_decay
        )
      elif 'weight' in part:
        spread = (1,) * (x.ndim - part['weight'].ndim) + part['weight'].shape
        weight, bias = (part[k].reshape(spread) for k in ('weight', 'bias'))
        y = y * weight + bias
    new = types.ModelState(params=state.params, batch_stats=stats)
    return (x + y if residual else y), new

  return Polarizer(init, apply)


def _start(form: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
  """Parameters of the parts of an identity."""
  c = shape[-1]
  conv = {'kernel': jnp.eye(c)}
  conv_norm = {**conv, 'scale': jnp.ones(c), 'bias': jnp.zeros(c)}
  affine = lambda shape: {'weight': jnp.ones(shape), 'bias': jnp.zeros(shape)}
  return {
    'convbn': [conv_norm],
    'onlyconv': [conv],
    'linear': [affine(shape)],
    'linear_light': [affine((c,))],
    'mlp': [affine(shape), affine(shape)],
    'twoconv': [conv_norm, conv_norm],
  }[form]


def _muted(part: dict[str, Any]) -> dict[str, Any]:
  """The part with its last factor at 0."""
  last = next(k for k in ('scale', 'weight', 'kernel') if k in part)
  return {**part, last: jnp.zeros_like(part[last])}


def _normalize(x, part, stats, train, decay):
  """BatchNorm over all axes but the last; (y, running statistics)."""
  if not train:
    moments = stats['mean'], stats['var']
    y = norm.apply_affine(x, *moments, part['scale'], part['bias'], _EPS)
    return y, stats
  mean, var = norm.moments(x)
  y = norm.apply_affine(x, mean, var, part['scale'], part['bias'], _EPS)
  var = norm.unbiased(var, x.size // x.shape[-1])
  move = lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype)
  return y, {'mean': move(stats['mean'], mean), 'var': move(stats['var'], var)}
