"""A 2-D convolution whose gradients keep XLA's fast path on CPU.

On CPU, the convolutions that automatic differentiation writes (axes permuted)
run 10–60 times slower inside `lax.scan`, `while_loop` or `lax.map` than at top
level, and 3×3 kernels on maps of less than 3×3 up to 100 times slower than
elsewhere, because XLA exchanges images and kernel. Here all of it is written
in forms that stay fast, so that a scanned training step costs what a looped
one does:

  forward          a plain NHWC convolution; for images of few channels,
                   neighboring outputs are computed as further channels; with
                   many channels and a 3×3 kernel, four rows at a time by
                   Winograd's algorithm; on maps smaller than the kernel a dense
                   layer of all pixels;
  input gradient   g, dilated by the stride, convolved with the flipped kernel
                   whose input and output channels are swapped; with a stride,
                   outputs of one phase by themselves;
  weight gradient  one matrix product of x, shifted along the columns, with g,
                   shifted along the rows: (kw·c) × (kh·d) sums hold each pair
                   of shifts once. For a 3×3 kernel and work enough, six by
                   Winograd's algorithm. With a stride along the rows, one of
                   the patches of x with g. With groups or dilated images, x as
                   [c, h, w, b] convolved with g as a kernel [h, w, b, d];
  depthwise        one row of the kernel after the other: products of shifted
                   images with its entries, or with g, added up. The same in
                   both gradients.

tests/benchmarks/README.md tells what was measured. The family is closed: each
gradient's own gradients are in it again, so every order of reverse mode takes
the fast path. 1×1 convolutions are matrix products and need no rule.

Reverse mode, `vmap`, `jit` and `scan` need nothing special. Forward mode does:
JAX lets a function have its own VJP or its own JVP but not both, therefore
`jax.jvp`, `jax.linearize` and `jax.jacfwd` raise a TypeError unless they run
under `forward_mode()`, which selects XLA's own convolution. Off CPU that one is
used anyway, since cuDNN has gradients of its own. Under `jax.shard_map` give
`check_vma=False` where some arguments are replicated: a function with its own
VJP cannot promote them.
"""

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.models import conv_forms, winograd

# Part of jit's cache key: a function traced on one route is traced anew, not
# reused, on the other.
_ROUTE = jax.make_user_context(None)


def forward_mode() -> AbstractContextManager:
  """A context in which models can be differentiated in forward mode.

  Reverse mode works there too, at the price of the slow gradients inside loops
  on CPU. Functions jitted outside are traced anew inside.

  Example:
    >>> import jax.numpy as jnp
    >>> from bdjax.models import conv
    >>> x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
    >>> fn = lambda x: conv.conv_general_dilated(
    ...   x, kernel, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ... )
    >>> with conv.forward_mode():
    ...   _, tangent = jax.jvp(fn, (x,), (x,))
    >>> float(tangent.sum())
    9.0
  """
  return _ROUTE('plain')


def fast_gradients() -> AbstractContextManager:
  """A context that forces the gradients of this module, whatever the device."""
  return _ROUTE('own')


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """`jax.lax.conv_general_dilated` with gradients that are fast in loops.

  A drop-in for it, also as `flax.linen.Conv(conv_general_dilated=…)`. Real
  NHWC × HWIO → NHWC convolutions take the rules of this module; any other call
  goes to `jax.lax` unchanged.

  Args:
    lhs: images [b, h, w, c].
    rhs: kernel [kh, kw, c / groups, d].
    window_strides: stride per spatial axis.
    padding: (low, high) per spatial axis, 'SAME' or 'VALID'.
    lhs_dilation: dilation of the images per spatial axis, default 1.
    rhs_dilation: dilation of the kernel per spatial axis, default 1.
    dimension_numbers: as in `jax.lax`.
    feature_group_count: number of groups; c groups are a depthwise convolution.
    batch_group_count: as in `jax.lax`.
    precision: as in `jax.lax`; the gradients use it too.
    preferred_element_type: as in `jax.lax`.

  Returns:
    The convolved images [b, h', w', d].
  """
  layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  covered = (
    lhs.ndim == 4
    and layout
    == lax.conv_dimension_numbers(lhs.shape, rhs.shape, conv_forms.LAYOUT)
    and batch_group_count == 1
    and preferred_element_type is None
    and jnp.issubdtype(lhs.dtype, jnp.floating)
  )
  if not covered or not _use_own_gradients():
    return lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      lhs_dilation,
      rhs_dilation,
      dimension_numbers,
      feature_group_count,
      batch_group_count,
      precision,
      preferred_element_type,
    )
  form = conv_forms.Form(
    strides=tuple(window_strides),
    padding=_explicit(padding, lhs, rhs, window_strides, rhs_dilation),
    x_dilation=tuple(lhs_dilation or (1, 1)),
    kernel_dilation=tuple(rhs_dilation or (1, 1)),
    groups=feature_group_count,
    precision=precision,
  )
  if conv_forms.is_pointwise(form, rhs):
    return conv_forms.convolve_pointwise(form, lhs, rhs)
  return _conv(form, lhs, rhs)


def _use_own_gradients() -> bool:
  if _ROUTE.value is None:
    return jax.default_backend() == 'cpu'
  return _ROUTE.value == 'own'


def _explicit(padding, lhs, rhs, strides, rhs_dilation):
  """Padding as pairs of ints."""
  if isinstance(padding, str):
    dilation = rhs_dilation or (1, 1)
    window = [
      conv_forms.dilated(k, d)
      for k, d in zip(rhs.shape, dilation, strict=False)
    ]
    padding = lax.padtype_to_pads(lhs.shape[1:3], window, strides, padding)
  return tuple((int(low), int(high)) for low, high in padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(form: conv_forms.Form, x: jax.Array, kernel: jax.Array) -> jax.Array:
  if conv_forms.is_depthwise(form, x, kernel.shape[-1]):
    return conv_forms.convolve_channels(form, x, kernel)
  if form.groups == 1 and math.prod(kernel.shape[:2]) > math.prod(x.shape[1:3]):
    return conv_forms.convolve_dense(form, x, kernel)
  if winograd.gains(form, x, kernel):
    return winograd.convolve(form, x, kernel)
  if conv_forms.gains_by_phases(form, kernel):
    return conv_forms.convolve_phases(form, x, kernel)
  block = conv_forms.best_block(form, x, kernel)
  if block != (1, 1):
    return conv_forms.convolve_packed(form, block, x, kernel)
  return conv_forms.convolve_plain(form, x, kernel)


def _conv_fwd(form, x, kernel):
  return _conv(form, x, kernel), (x, kernel)


def _conv_bwd(form, residuals, g):
  x, kernel = residuals
  return _input_gradient(form, x, kernel, g), _weight_gradient(
    form, x, kernel, g
  )


_conv.defvjp(_conv_fwd, _conv_bwd)


def _input_gradient(form: conv_forms.Form, x, kernel, g) -> jax.Array:
  """Spreads g over the inputs it came from, [b, h, w, c]."""
  padding = []
  for axis in range(2):
    low, _ = form.padding[axis]
    window = conv_forms.dilated(kernel.shape[axis], form.kernel_dilation[axis])
    size = conv_forms.dilated(x.shape[1 + axis], form.x_dilation[axis])
    reached = conv_forms.dilated(g.shape[1 + axis], form.strides[axis])
    before = window - 1 - low
    padding.append((before, size - 1 - reached - before + window))
  swapped = _swap_channels(jnp.flip(kernel, (0, 1)), form.groups)
  transposed = form._replace(
    strides=form.x_dilation, x_dilation=form.strides, padding=tuple(padding)
  )
  return _conv(transposed, g, swapped)


def _swap_channels(kernel: jax.Array, groups: int) -> jax.Array:
  """A kernel [kh, kw, c / groups, d] as [kh, kw, d / groups, c]."""
  kh, kw, c, d = kernel.shape
  split = kernel.reshape(kh, kw, c, groups, d // groups)
  return split.transpose(0, 1, 4, 3, 2).reshape(kh, kw, d // groups, groups * c)


def _weight_gradient(form: conv_forms.Form, x, kernel, g) -> jax.Array:
  """Correlates inputs with g over the batch, [kh, kw, c / groups, d]."""
  is_plain = form.groups == 1 and form.x_dilation == (1, 1)
  if is_plain or conv_forms.is_depthwise(form, x, g.shape[-1]):
    return _correlate(form, kernel.shape[:2], x, g)
  padding = []
  for axis in range(2):
    low, _ = form.padding[axis]
    window = conv_forms.dilated(kernel.shape[axis], form.kernel_dilation[axis])
    size = conv_forms.dilated(x.shape[1 + axis], form.x_dilation[axis])
    reached = conv_forms.dilated(g.shape[1 + axis], form.strides[axis])
    padding.append((low, window - 1 + reached - size - low))
  b, h, w, c = x.shape
  # Channels of one group take the place of the batch, the batch that of the
  # channels; groups stay outermost among the latter.
  images = x.reshape(b, h, w, form.groups, c // form.groups)
  images = images.transpose(4, 1, 2, 3, 0).reshape(
    c // form.groups, h, w, form.groups * b
  )
  transposed = form._replace(
    strides=form.kernel_dilation,
    kernel_dilation=form.strides,
    padding=tuple(padding),
  )
  out = _conv(transposed, images, g.transpose(1, 2, 0, 3))
  return out.transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _correlate(
  form: conv_forms.Form, window: tuple[int, int], x, g
) -> jax.Array:
  """The weight gradient as matrix products, [kh, kw, c / groups, d].

  The batch goes through in pieces whose copies stay in the cache; a depthwise
  one makes none.
  """
  if form.groups > 1:
    return conv_forms.channel_products(form, window, x, g)
  if winograd.product_gains(form, window, x, g):
    product = winograd.product
  elif form.strides[0] == 1:
    product = conv_forms.row_product
  else:
    product = conv_forms.patch_product
  copied = (
    x.shape[1] * g.shape[2] * (window[1] * x.shape[3] + window[0] * g.shape[3])
  )
  # Where sums are large, more copies for each time that they are added up.
  size = conv_forms.piece_size(x, copied, least=64 * x.shape[3] * g.shape[3])
  if size == x.shape[0]:
    return product(form, window, x, g)
  pieces = [a.reshape(-1, size, *a.shape[1:]) for a in (x, g)]

  def add(total, piece):
    return total + product(form, window, *piece).astype(total.dtype), None

  # Many small terms: sums of half precision are kept in single precision.
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  total = jnp.zeros((*window, x.shape[3], g.shape[3]), dtype)
  return lax.scan(add, total, pieces)[0].astype(x.dtype)


def _correlate_fwd(form, window, x, g):
  return _correlate(form, window, x, g), (x, g)


def _correlate_bwd(form, window, residuals, t):
  del window
  x, g = residuals
  return _input_gradient(form, x, t, g), _conv(form, x, t)


_correlate.defvjp(_correlate_fwd, _correlate_bwd)
