"""Forms of 2-D convolutions that are fast on CPU, one function each.

Images are [b, h, w, c], kernels [kh, kw, c / groups, d]. `conv` chooses among
them and joins them to a family closed under differentiation;
tests/benchmarks/README.md tells what was measured.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
_CACHE = 2**23  # bytes of copies that a product may read at a time
# Channels of images up to which outputs are joined, of joined outputs, and of
# outputs from which phases gain.
_FEW, _FEW_DILATED, _MANY, _PHASED = 16, 64, 32, 16


class Form(NamedTuple):
  """What a convolution is besides its two arrays; two entries per axis pair."""

  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  x_dilation: tuple[int, ...] = (1, 1)
  kernel_dilation: tuple[int, ...] = (1, 1)
  groups: int = 1
  precision: Any = None


def convolve_plain(form: Form, x, kernel) -> jax.Array:
  """XLA's own convolution, [b, h', w', d]."""
  return lax.conv_general_dilated(
    x,
    kernel,
    form.strides,
    form.padding,
    form.x_dilation,
    form.kernel_dilation,
    LAYOUT,
    form.groups,
    precision=form.precision,
  )


def is_pointwise(form: Form, kernel) -> bool:
  """Whether each output sees a single pixel."""
  return (
    kernel.shape[:2] == (1, 1)
    and form.groups == 1
    and form.padding == ((0, 0), (0, 0))
    and form.x_dilation == (1, 1)
  )


def convolve_pointwise(form: Form, x, kernel) -> jax.Array:
  """A 1×1 convolution as one matrix product; its gradients are two more."""
  x = x[:, :: form.strides[0], :: form.strides[1]]
  flat = x.reshape(-1, x.shape[-1])
  out = jnp.dot(flat, kernel[0, 0], precision=form.precision)
  return out.reshape(*x.shape[:-1], kernel.shape[-1])


def dilated(size: int, dilation: int) -> int:
  """Extent of `size` entries that stand `dilation` apart."""
  return (size - 1) * dilation + 1


def piece_size(x, copied: int, least: int = 0) -> int:
  """Images to take at a time; a divisor of the batch.

  Copies, `copied` entries for each image, should stay in the cache, or be
  `least` entries.
  """
  room = max(_CACHE // x.dtype.itemsize, least) // copied
  n = x.shape[0]
  return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(room, 1))


def convolve_dense(form: Form, x, kernel) -> jax.Array:
  """A convolution as a dense layer of all pixels, [b, h', w', d].

  On a map smaller than the kernel that takes fewer products than the kernel's
  entries would, most of which meet the padding, and copies no image.
  """
  size = output_size(form, x, kernel)
  rows, columns = _entries(form, kernel.shape[:2], x.shape[1:3], size)
  padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
  matrix = padded[rows[:, :, None, None], columns].transpose(0, 2, 4, 1, 3, 5)
  matrix = matrix.reshape(math.prod(x.shape[1:]), -1)
  flat = x.reshape(x.shape[0], -1)
  out = jnp.dot(flat, matrix, precision=form.precision)
  return out.reshape(x.shape[0], *size, kernel.shape[-1])


def _entries(form: Form, window, size_in, size_out) -> list[np.ndarray]:
  """Per axis, the entry of the kernel between input and output, [in, out].

  The kernel's length where there is none.
  """
  tables = []
  for axis in range(2):
    first, last = np.ogrid[: size_in[axis], : size_out[axis]]
    reached = first * form.x_dilation[axis] + form.padding[axis][0]
    entry, between = np.divmod(
      reached - last * form.strides[axis], form.kernel_dilation[axis]
    )
    met = (between == 0) & (entry >= 0) & (entry < window[axis])
    tables.append(np.where(met, entry, window[axis]))
  return tables


def best_block(form: Form, x, kernel) -> tuple[int, int]:
  """Neighboring outputs (rows, columns) that `convolve_packed` should join.

  (1, 1) where joining was not measured to gain: it does for images of few
  channels, and for dilated ones of not too many.
  """
  channels, features = kernel.shape[2:]
  is_plain = form.groups == 1 and form.kernel_dilation == (1, 1)
  if not is_plain or form.strides != (1, 1):
    return 1, 1
  if form.x_dilation != (1, 1):
    rows, columns = form.x_dilation
    return (rows, columns) if channels <= _FEW_DILATED else (1, 1)
  width, columns = output_size(form, x, kernel)[1], 1
  while (
    channels <= _FEW
    and 2 * columns * features <= _MANY
    and width % (2 * columns) == 0
  ):
    columns *= 2
  return 1, columns


def convolve_packed(form: Form, block: tuple[int, int], x, kernel) -> jax.Array:
  """A convolution of stride 1 that computes blocks of outputs, [b, h', w', d].

  The kernel, shifted to each place of a block, makes one wider kernel with
  rows · columns · d outputs: more channels per product, for some products with
  zeros. Of dilated images it meets each pixel once, never the zeros between.
  """
  tables, strides, padding = [], [], []
  size = output_size(form, x, kernel)
  for axis in range(2):
    # Output block·m + r meets with entry i the dilated position
    # block·m + r - low + i, a pixel where that is a multiple of the dilation.
    dilation, low = form.x_dilation[axis], form.padding[axis][0]
    length, width = kernel.shape[axis], block[axis]
    first, last = -(low // dilation), (width + length - 2 - low) // dilation
    pixel, place = np.ogrid[first : last + 1, :width]
    entry = dilation * pixel - place + low
    tables.append(np.where((entry >= 0) & (entry < length), entry, length))
    strides.append(width // dilation)
    reached = (-(-size[axis] // width) - 1) * strides[axis] + last
    padding.append((-first, reached - x.shape[1 + axis] + 1))
  rows, columns = tables
  padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
  wide = padded[rows[:, :, None, None], columns].transpose(0, 2, 4, 1, 3, 5)
  plain = form._replace(
    strides=tuple(strides), padding=tuple(padding), x_dilation=(1, 1)
  )
  wide = wide.reshape(*wide.shape[:3], -1)
  out = convolve_plain(plain, x, wide)
  b, h, w, _ = out.shape
  out = out.reshape(b, h, w, *block, kernel.shape[-1])
  out = out.transpose(0, 1, 3, 2, 4, 5)
  out = out.reshape(b, h * block[0], w * block[1], -1)
  return out[:, : size[0], : size[1]]


def gains_by_phases(form: Form, kernel) -> bool:
  """Whether `convolve_phases` applies, and was measured to gain."""
  window, features = kernel.shape[:2], kernel.shape[3]
  return (
    form.x_dilation != (1, 1)
    and form.groups == 1
    and form.strides == form.kernel_dilation == (1, 1)
    and all(k >= d for k, d in zip(window, form.x_dilation, strict=True))
    and features >= _PHASED
  )


def convolve_phases(form: Form, x, kernel) -> jax.Array:
  """A convolution of dilated images, [b, h', w', d].

  Outputs a dilation apart meet the same entries of the kernel; all others would
  meet the zeros between pixels. Each phase is a small convolution by itself.
  """
  size = output_size(form, x, kernel)
  rows, columns = (_phases(form, i, x, kernel, size) for i in range(2))
  out = [
    [_convolve_phase(form, x, kernel, row, column) for column in columns]
    for row in rows
  ]
  out = jnp.stack([jnp.stack(row, 3) for row in out], 2)
  b, h, phases, w, others, d = out.shape
  out = out.reshape(b, h * phases, w * others, d)
  return out[:, : size[0], : size[1]]


def _phases(form: Form, axis: int, x, kernel, size) -> list:
  """Each phase's entries of the kernel along an axis, and its padding."""
  dilation, low = form.x_dilation[axis], form.padding[axis][0]
  count, found = -(-size[axis] // dilation), []
  for phase in range(dilation):
    # Output dilation·m + phase meets with entry i the dilated position
    # dilation·m + phase - low + i, a pixel where that is a multiple.
    begin = (low - phase) % dilation
    first = (phase - low + begin) // dilation
    met = len(range(begin, kernel.shape[axis], dilation))
    high = first + count + met - 1 - x.shape[1 + axis]
    found.append((slice(begin, None, dilation), (-first, high)))
  return found


def _convolve_phase(form: Form, x, kernel, row, column) -> jax.Array:
  part = kernel[row[0], column[0]]
  plain = form._replace(padding=(row[1], column[1]), x_dilation=(1, 1))
  if is_pointwise(plain, part):
    return convolve_pointwise(plain, x, part)
  return convolve_plain(plain, x, part)


def output_size(form: Form, x, kernel) -> list[int]:
  """(h', w')."""
  size = []
  for axis in range(2):
    window = dilated(kernel.shape[axis], form.kernel_dilation[axis])
    spread = dilated(x.shape[1 + axis], form.x_dilation[axis])
    spread += sum(form.padding[axis])
    size.append((spread - window) // form.strides[axis] + 1)
  return size


def is_depthwise(form: Form, x, features: int) -> bool:
  """Whether each channel has a kernel of its own."""
  return 1 < form.groups == x.shape[-1] == features


def convolve_channels(form: Form, x, kernel) -> jax.Array:
  """A depthwise convolution, each channel by itself, [b, h', w', c]."""
  size = output_size(form, x, kernel)
  dtype = jnp.promote_types(x.dtype, jnp.float32)  # of sums
  images = spread(form, x)

  def add(total, row):
    i, entries = row
    met = _met_by_row(form, i, kernel.shape[1], size, images)
    for part, entry in zip(met, entries, strict=True):
      total += (part * entry.reshape(1, 1, 1, -1)).astype(dtype)
    return total, None

  # A loop, not one expression: 7×7 products would take seconds to compile.
  total = jnp.zeros((x.shape[0], *size, x.shape[3]), dtype)
  rows = jnp.arange(kernel.shape[0]), kernel[:, :, 0]
  return lax.scan(add, total, rows)[0].astype(x.dtype)


def channel_products(form: Form, window, x, g) -> jax.Array:
  """The weight gradient of a depthwise convolution, [kh, kw, 1, c]."""
  size = g.shape[1:3]
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  images = spread(form, x)

  def correlate(_, i):
    met = _met_by_row(form, i, window[1], size, images)
    products = [jnp.sum(part * g, (0, 1, 2), dtype=dtype) for part in met]
    return None, jnp.stack(products)

  sums = lax.scan(correlate, None, jnp.arange(window[0]))[1]
  return sums[:, :, None].astype(x.dtype)


def _met_by_row(form: Form, i, width: int, size, x) -> list:
  """What each entry of a kernel's row i meets in images already spread."""
  stride, dilation = form.strides[0], form.kernel_dilation[0]
  span = dilated(size[0], stride)
  rows = lax.dynamic_slice_in_dim(x, i * dilation, span, axis=1)
  return shifts(form, 1, width, size[1], rows[:, ::stride])


def _patches(form: Form, window, size, x) -> jax.Array:
  """What each output sees, [b, *size, kh · kw · c]."""
  x = spread(form, x)
  rows = shifts(form, 0, window[0], size[0], x)
  return jnp.concatenate(
    [a for row in rows for a in shifts(form, 1, window[1], size[1], row)], 3
  )


def spread(form: Form, x, axes=(0, 1)) -> jax.Array:
  """Dilated and padded images, along some of the spatial axes."""
  config = [(0, 0, 0)] * 4
  for axis in axes:
    config[1 + axis] = (*form.padding[axis], form.x_dilation[axis] - 1)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def shifts(form: Form, axis: int, window: int, size: int, x) -> list:
  """What each element of a kernel's axis meets: `size` strided entries."""
  stride, dilation = form.strides[axis], form.kernel_dilation[axis]
  span = dilated(size, stride)
  return [
    lax.slice_in_dim(
      x, i * dilation, i * dilation + span, stride, axis=1 + axis
    )
    for i in range(window)
  ]


def padded_rows(x, low: int, high: int) -> jax.Array:
  """Rows of zeros before and after; fewer rows where negative."""
  config = ((0, 0, 0), (low, high, 0), (0, 0, 0), (0, 0, 0))
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def row_product(form: Form, window, x, g) -> jax.Array:
  """Columns of x times rows of g, where rows are taken one by one.

  Shifting x along the columns and g along the rows makes kw + kh copies; the
  patches of x would be kw · kh.
  """
  kh, kw = window
  low, dilation = form.padding[0][0], form.kernel_dilation[0]
  shifted = shifts(form, 1, kw, g.shape[2], spread(form, x, axes=(1,)))
  columns = jnp.concatenate(shifted, 3)
  reach = (kh - 1) * dilation
  before, height = reach - low, x.shape[1]
  after = height + reach - g.shape[1] - before
  g = padded_rows(g, before, after)
  starts = [(kh - 1 - i) * dilation for i in range(kh)]
  rows = jnp.concatenate([g[:, i : i + height] for i in starts], 3)
  out = flat_product(form, columns, rows)
  return out.reshape(kw, x.shape[3], kh, -1).transpose(2, 0, 1, 3)


def patch_product(form: Form, window, x, g) -> jax.Array:
  """Patches of x times g."""
  patches = _patches(form, window, g.shape[1:3], x)
  out = flat_product(form, patches, g)
  return out.reshape(*window, x.shape[3], g.shape[3])


def flat_product(form: Form, a, b) -> jax.Array:
  """Sum over all but the last axes, [c, d]."""
  a, b = (value.reshape(-1, value.shape[-1]) for value in (a, b))
  contracted = (((0,), (0,)), ((), ()))
  return lax.dot_general(a, b, contracted, precision=form.precision)
