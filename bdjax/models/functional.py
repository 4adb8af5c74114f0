"""Layers of networks that are plain functions of nested dicts of arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.models import conv as conv_lib

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
  """An abstract float32 array."""
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense_shape(inputs: int, outputs: int) -> dict[str, Any]:
  """Abstract parameters of a linear layer."""
  return {'kernel': leaf(inputs, outputs), 'bias': leaf(outputs)}


def conv_shape(
  size: int, inputs: int, outputs: int, *, bias: bool = True
) -> dict[str, Any]:
  """Abstract parameters of a size × size convolution."""
  kernel = {'kernel': leaf(size, size, inputs, outputs)}
  return kernel | ({'bias': leaf(outputs)} if bias else {})


def dense(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
  """Linear: x · kernel + bias, [b, inputs] -> [b, outputs]."""
  return x @ layer['kernel'] + layer['bias'][None]


def conv(
  layer: Mapping[str, jax.Array],
  x: jax.Array,
  stride: int = 1,
  *,
  dilation: int = 1,
  padding: tuple[int, int] | None = None,
) -> jax.Array:
  """A convolution by the route that is fast in loops.

  Args:
    layer: 'kernel' [k, k, c, d] and, where it has one, 'bias' [d].
    x: [b, h, w, c].
    stride: of both axes.
    dilation: of the kernel.
    padding: (before, after) of both axes; None = dilation · (k // 2) each.

  Returns:
    [b, h', w', d].
  """
  kernel = layer['kernel']
  if padding is None:
    padding = (dilation * (kernel.shape[0] // 2),) * 2
  out = conv_lib.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    (padding, padding),
    rhs_dilation=(dilation, dilation),
    dimension_numbers=_LAYOUT,
  )
  return out + layer['bias'].reshape(1, 1, 1, -1) if 'bias' in layer else out


def repeated(x: jax.Array, times: tuple[int, int] | int) -> jax.Array:
  """Every pixel as a block of pixels: nearest up-sampling, [b, h, w, c]."""
  rows, columns = (times, times) if isinstance(times, int) else times
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, rows, w, columns, c))
  return x.reshape(b, h * rows, w * columns, c)


def depth(h: int, w: int, most: int, *, smallest: int = 1) -> int:
  """How often both sides can be halved.

  Args:
    h: height in pixels.
    w: width.
    most: no more often than this.
    smallest: side that the smallest map must keep.

  Returns:
    The number of halvings.

  Raises:
    ValueError: if there is none.
  """
  fits = [
    n
    for n in range(1, most + 1)
    if h % 2**n == 0 and w % 2**n == 0 and min(h, w) >= smallest * 2**n
  ]
  if not fits:
    raise ValueError(
      f'{h}×{w} images cannot be halved; give images whose sides are multiples '
      f'of 2, best of {2**most}.'
    )
  return max(fits)
