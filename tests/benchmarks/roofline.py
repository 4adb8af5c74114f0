"""What a row computes, and how fast the device multiplies matrices.

Operations are those of the network's own definition, two for each product and
its sum; what a form of a convolution computes beside them is no work done.
"""

import time

import jax
import jax.numpy as jnp

from bdjax import models, types

_ON_CPU, _ELSEWHERE = (1024, jnp.float32), (8192, jnp.bfloat16)
_CALLS = 20


def forward_flops(classifier: types.Classifier, num: int) -> float:
  """Operations of one forward pass of `num` images."""
  state = jax.eval_shape(classifier.init, jax.random.key(0))
  shape = (num, *classifier.info.image_shape)
  with models.forward_mode():  # convolutions as XLA counts them
    lowered = jax.jit(lambda s, x: classifier.apply(s, x)[0]).lower(
      state, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
  return float(lowered.cost_analysis()['flops'])


def matmul_rate() -> dict[str, float | str | int]:
  """Operations per second of the best of several products of squares."""
  size, dtype = _ON_CPU if jax.default_backend() == 'cpu' else _ELSEWHERE
  a = jnp.ones((size, size), dtype)
  dot = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(dot(a, a))
  best = float('inf')
  for _ in range(_CALLS):
    began = time.perf_counter()
    jax.block_until_ready(dot(a, a))
    best = min(best, time.perf_counter() - began)
  rate = 2 * size**3 / best
  return {'size': size, 'dtype': jnp.dtype(dtype).name, 'flops_per_s': rate}
