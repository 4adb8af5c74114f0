"""Winograd's algorithm for 3×3 convolutions with many channels, on CPU.

F(4, 3) along the rows: combinations of six rows of an image and of three of a
kernel make six products, whose combinations are four rows of the output; they
take twelve products otherwise. Along the columns nothing is combined: that
would save products, but cost as much in copies. In single precision rounding
errors are three times those of a plain convolution: their root mean square is
6e-7 of that of the output (128 channels, 16×16 pixels; plain 2e-7).

Lavin and Gray, Fast algorithms for convolutional neural networks, CVPR 2016.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.models import conv_forms

# F(4, 3) at the points 0, 1, -1, 1/2, -2 and infinity. With the usual 2 in
# place of 1/2, rounding errors are up to twice as large.
_IMAGE = (
  (1, -1.5, -2, 1.5, 1, 0),
  (0, -1, 0.5, 2.5, 1, 0),
  (0, 1, -2.5, 0.5, 1, 0),
  (0, -2, -1, 2, 1, 0),
  (0, 0.5, -1, -0.5, 1, 0),
  (0, 1, -1.5, -2, 1.5, 1),
)
_KERNEL = (
  (1, 0, 0),
  (1 / 3, 1 / 3, 1 / 3),
  (-1 / 3, 1 / 3, -1 / 3),
  (-16 / 15, -8 / 15, -4 / 15),
  (1 / 15, -2 / 15, 4 / 15),
  (0, 0, 1),
)
_OUTPUT = (
  (1, 1, 1, 1, 1, 0),
  (0, 1, -1, 0.5, -2, 0),
  (0, 1, 1, 0.25, 4, 0),
  (0, 1, -1, 0.125, -8, 1),
)
# Pairs of channels, and products of pairs and pixels, from which it gains.
_PAIRS, _GRADIENT_PAIRS, _PRODUCTS = 2**12, 2**9, 2**24


def gains(form: conv_forms.Form, x, kernel) -> bool:
  """Whether `convolve` was measured to gain."""
  size = x.shape[0], *conv_forms.output_size(form, x, kernel)
  return _gains(form, kernel.shape, x.dtype, size, _PAIRS)


def _gains(form, kernel, dtype, size, least: int) -> bool:
  """For outputs of `size`, from `least` pairs of channels."""
  pairs, rows = math.prod(kernel[2:]), 4 * -(-size[1] // 4)
  return (
    kernel[:2] == (3, 3)
    and form.groups == 1
    and form.strides == form.x_dilation == form.kernel_dilation == (1, 1)
    and jnp.finfo(dtype).bits >= 32  # half precision would feel the sums
    and pairs >= least
    and pairs * math.prod(size) >= _PRODUCTS
    and 3 * rows <= 4 * size[1]  # few rows are computed in vain
  )


def convolve(form: conv_forms.Form, x, kernel) -> jax.Array:
  """A 3×3 convolution, four rows of the output at a time, [b, h', w', d]."""
  height, width = conv_forms.output_size(form, x, kernel)
  along = form._replace(padding=((0, 0), form.padding[1]))
  rows = [row[None] for row in _combined(_KERNEL, kernel)]

  def four(x):
    images = _combined(_IMAGE, _sixes(form, x, height))
    parts = map(
      functools.partial(conv_forms.convolve_plain, along), images, rows
    )
    out = jnp.stack(_combined(_OUTPUT, list(parts)), 2)
    return out.reshape(x.shape[0], -1, width, kernel.shape[3])[:, :height]

  copied = 3 * height * width * (x.shape[3] + kernel.shape[3]) // 2
  size = conv_forms.piece_size(x, copied)
  if size == x.shape[0]:
    return four(x)
  pieces = x.reshape(-1, size, *x.shape[1:])
  return lax.map(four, pieces).reshape(-1, height, width, kernel.shape[3])


def _sixes(form: conv_forms.Form, x, height: int) -> list[jax.Array]:
  """First to sixth of the rows that four rows of the output meet, each."""
  low, fours = form.padding[0][0], -(-height // 4)
  x = conv_forms.padded_rows(x, low, 4 * fours + 2 - low - x.shape[1])
  return [x[:, i : i + 4 * fours - 3 : 4] for i in range(6)]


def product_gains(form: conv_forms.Form, window, x, g) -> bool:
  """Whether `product` was measured to gain."""
  kernel = *window, x.shape[3], g.shape[3]
  return _gains(form, kernel, x.dtype, g.shape[:3], _GRADIENT_PAIRS)


def product(form: conv_forms.Form, window, x, g) -> jax.Array:
  """Combined rows of x times combined rows of g, for a 3×3 kernel.

  The transpose of `convolve`, [3, 3, c, d]; along the columns x is shifted.
  """
  height, width = g.shape[1:3]
  images = _combined(_IMAGE, _sixes(form, x, height))
  g = conv_forms.padded_rows(g, 0, -height % 4)
  slopes = _combined(zip(*_OUTPUT, strict=True), [g[:, i::4] for i in range(4)])
  rows = []
  for image, slope in zip(images, slopes, strict=True):
    shifted = conv_forms.shifts(
      form, 1, 3, width, conv_forms.spread(form, image, axes=(1,))
    )
    sums = conv_forms.flat_product(form, jnp.concatenate(shifted, 3), slope)
    rows.append(sums.reshape(3, x.shape[3], -1))
  return jnp.stack(_combined(zip(*_KERNEL, strict=True), rows))


def _combined(matrix, parts) -> list[jax.Array]:
  """Linear combinations of arrays, one for each row of the matrix."""
  return [
    functools.reduce(
      operator.add, (w * p for w, p in zip(row, parts, strict=True) if w)
    )
    for row in matrix
  ]
