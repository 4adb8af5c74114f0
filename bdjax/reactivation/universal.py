"""What attacks by one universal perturbation share: its trigger, its means."""

import jax
import jax.numpy as jnp

from bdjax import perturb, types


def trigger(
  shape: tuple[int, int, int], eps: float | jax.Array, norm: perturb.Norm
) -> types.Trigger:
  """The trigger that adds one universal perturbation and clips.

  Args:
    shape: (h, w, c).
    eps: radius of its random start, may be traced.
    norm: 'linf' | 'l2' | 'l1'.

  Returns:
    A trigger with params {'delta': [h, w, c]}; its key is not used.
  """

  def init(key):
    return {'delta': perturb.init_uniform(key, shape, eps, norm)}

  def apply(params, image, key):
    del key
    return perturb.clip_unit(image + params['delta'])

  return types.Trigger(init=init, apply=apply, info='universal_perturbation')


def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over the images of a batch that count.

  Args:
    values: [b].
    mask: bool [b].

  Returns:
    float32 [].
  """
  weight = mask.astype(jnp.float32)
  return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)
