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


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 2×2 transposed convolution of stride 2, as one matrix product.

  Windows do not overlap: out[2i + p, 2j + q] = x[i, j] · kernel[p, q].

  Args:
    x: [b, h, w, c].
    kernel: [2, 2, c, d].

  Returns:
    [b, 2h, 2w, d].
  """
  b, h, w, c = x.shape
  d = kernel.shape[-1]
  flat = x.reshape(-1, c) @ kernel.transpose(2, 0, 1, 3).reshape(c, 4 * d)
  parts = flat.reshape(b, h, w, 2, 2, d).transpose(0, 1, 3, 2, 4, 5)
  return parts.reshape(b, 2 * h, 2 * w, d)


def instance_norm(x: jax.Array) -> jax.Array:
  """Every map of every image at mean 0 and variance 1, [b, h, w, c]."""
  x = x - jnp.mean(x, (1, 2), keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, (1, 2), keepdims=True) + 1e-5)


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
