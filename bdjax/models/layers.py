"""Layers that the architectures share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bdjax.models import conv as conv_lib
from bdjax.models import norm, taps


def flat(place: str) -> str:
  """The module that torch calls 'features.0.1': 'features_0_1'."""
  return place.replace('.', '_')


def conv(
  features: int,
  size: int,
  stride: int = 1,
  *,
  name: str,
  groups: int = 1,
  use_bias: bool = False,
  padding: int | None = None,
) -> nn.Conv:
  """A size × size convolution, padded on all sides, by default size // 2."""
  pad = size // 2 if padding is None else padding
  return nn.Conv(
    features,
    (size, size),
    strides=(stride, stride),
    padding=((pad, pad),) * 2,
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


def through_conv(
  place: str,
  x: jax.Array,
  tap: taps.Taps,
  features: int,
  size: int,
  stride: int = 1,
  **options,
) -> jax.Array:
  """`conv` as the tapped module of a place, called within a compact module."""
  layer = conv(features, size, stride, name=flat(place), **options)
  return tap.through(place, layer, x)


def through_norm(
  place: str, x: jax.Array, tap: taps.Taps, train: bool, **options
) -> jax.Array:
  """`norm.BatchNorm` as the tapped module of a place."""
  layer = norm.BatchNorm(name=flat(place), **options)
  return tap.through(place, layer, x, train)


def through_dense(
  place: str, x: jax.Array, tap: taps.Taps, features: int
) -> jax.Array:
  """A linear layer as the tapped module of a place."""
  return tap.through(place, nn.Dense(features, name=flat(place)), x)


def through_layer_norm(place: str, x: jax.Array, tap: taps.Taps) -> jax.Array:
  """A norm over channels, ε = 1e-6, as the tapped module of a place."""
  # Not E[x²] − E[x]²: features far off zero would lose their digits.
  layer = nn.LayerNorm(1e-6, use_fast_variance=False, name=flat(place))
  return tap.through(place, layer, x)


def drop_examples(x: jax.Array, rate: float, train: bool) -> jax.Array:
  """Stochastic depth: in training a branch is 0 for some of the examples.

  Args:
    x: output of a residual branch, [b, ...].
    rate: share of the examples; what remains is scaled by 1 / (1 − rate).
    train: whether anything is dropped.

  Returns:
    The branch; drawn with the key of dropout.
  """
  axes = tuple(range(1, x.ndim))
  return nn.Dropout(rate, broadcast_dims=axes)(x, deterministic=not train)


def squeeze_excite(
  place: str,
  x: jax.Array,
  tap: taps.Taps,
  squeezed: int,
  activation: Callable[[jax.Array], jax.Array],
  gate: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Weighs channels by what their means over space say.

  x · gate(fc2(activation(fc1(mean(x))))); both layers are 1×1 convolutions, as
  in torch, at the places `place`.fc1 and `place`.fc2.

  Args:
    place: torch's path.
    x: [b, h, w, c].
    tap: the recorder.
    squeezed: outputs of the first layer.
    activation: behind it.
    gate: behind the second one.

  Returns:
    [b, h, w, c].
  """
  s = x.mean((1, 2), keepdims=True)
  s = through_conv(f'{place}.fc1', s, tap, squeezed, 1, use_bias=True)
  s = activation(s)
  s = through_conv(f'{place}.fc2', s, tap, x.shape[-1], 1, use_bias=True)
  return x * gate(s)


def divisible(channels: float) -> int:
  """The multiple of 8 that mobile networks round a number of channels to.

  The nearest one, but neither below 8 nor more than 10 % below `channels`.
  """
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded


def max_pool(x: jax.Array) -> jax.Array:
  """Maxima of 2×2 windows, [b, h, w, c] -> [b, h // 2, w // 2, c].

  Of equal maxima one gets the gradient.
  """
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c)
  x = _larger(x[:, :, 0], x[:, :, 1])
  return _larger(x[:, :, :, 0], x[:, :, :, 1])


def _larger(one: jax.Array, other: jax.Array) -> jax.Array:
  """The maximum, by a choice between two.

  The gradient of `max` looks for what equals it. A compiler that computes the
  same numbers twice may round them differently, so that nothing does: gradients
  then are NaN, or missing (seen on CPU without LLVM's optimizations).
  """
  return jnp.where(one >= other, one, other)


def max_pool3(x: jax.Array) -> jax.Array:
  """Maxima of 3×3 windows of stride 2, padded by 1 as in torch.

  As slices along one axis after the other: XLA's own windows have gradients
  that are slow on CPU. Of equal maxima one gets the gradient.

  Args:
    x: [b, h, w, c].

  Returns:
    [b, ⌈h / 2⌉, ⌈w / 2⌉, c].
  """
  for axis in (1, 2):
    size = -(-x.shape[axis] // 2)
    config = [(0, 0, 0)] * 4
    config[axis] = (1, 1, 0)
    padded = jax.lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), config)
    parts = [
      jax.lax.slice_in_dim(padded, i, i + 2 * size - 1, 2, axis)
      for i in range(3)
    ]
    x = _larger(_larger(parts[0], parts[1]), parts[2])
  return x


def spatial_mean(x: jax.Array) -> jax.Array:
  """The mean of each map, [b, h, w, c] -> [b, c].

  On CPU as a product with ones: XLA would compute a sum together with all the
  layers before it that nobody else reads, by kernels that are slower for them.
  """
  if jax.default_backend() != 'cpu':
    return x.mean((1, 2))
  b, h, w, c = x.shape
  total = jnp.einsum(
    'bpc,p->bc',
    x.reshape(b, h * w, c),
    jnp.ones(h * w, x.dtype),
    precision='highest',
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )
  return (total / (h * w)).astype(x.dtype)


def average_pool(x: jax.Array) -> jax.Array:
  """Averages of 2×2 windows, [b, h, w, c] -> [b, h // 2, w // 2, c]."""
  b, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2]
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


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
