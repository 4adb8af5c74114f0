"""Layers that the architectures share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bdjax.models import conv as conv_lib


def conv(
  features: int,
  size: int,
  stride: int = 1,
  *,
  name: str,
  groups: int = 1,
  use_bias: bool = False,
) -> nn.Conv:
  """A size × size convolution, padded by size // 2 on all sides as in torch."""
  return nn.Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=((size // 2, size // 2),) * 2,
    feature_group_count=groups,
    use_bias=use_bias,
    conv_general_dilated_cls=_fast_convolution,
    name=name,
  )


def _fast_convolution():
  return conv_lib.conv_general_dilated


def max_pool(x: jax.Array) -> jax.Array:
  """Maxima of 2×2 windows, [b, h, w, c] -> [b, h // 2, w // 2, c]."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
  """Averages [b, h, w, c] down, or repeats it up, to [b, size, size, c].

  Bin i of an axis of length n averages rows ⌊i·n/size⌋ up to, not including,
  ⌈(i + 1)·n/size⌉, as in torch.
  """
  rows = jnp.asarray(_bins(x.shape[1], size), x.dtype)
  columns = jnp.asarray(_bins(x.shape[2], size), x.dtype)
  return jnp.einsum('ih,bhwc,jw->bijc', rows, x, columns)


def _bins(n: int, size: int) -> np.ndarray:
  """Averaging matrix [size, n]."""
  matrix = np.zeros((size, n))
  for i in range(size):
    start, stop = i * n // size, -(-(i + 1) * n // size)
    matrix[i, start:stop] = 1 / (stop - start)
  return matrix
