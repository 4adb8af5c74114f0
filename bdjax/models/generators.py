"""Generators with BatchNorm: nets that turn an image into maps of its size.

They learn triggers. Three kinds, by where they were published:

  encoder_decoder      two convolutions and a maximum per level, bilinear
                       doubling on the way back, no skips; a linear end
  strided_autoencoder  4×4 convolutions of stride 2 and their transposes; tanh
  skip_autoencoder     two convolutions and a mean per level, bilinear doubling
                       with aligned corners, skips; tanh

Images are normalized in front of them. In training the statistics of the batch
normalize, so that an image's maps depend on the images beside it.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bdjax import types
from bdjax.models import functional, initial, layers, norm

_TORCH = initial.rule(*[initial.uniform_in] * 3)


class Generator(NamedTuple):
  """A generator as pure functions of a `ModelState`.

  Attributes:
    init: key -> ModelState.
    apply: (state, images [b, h, w, c] in [0, 1], *, train=False) -> (maps
      [b, h, w, d], ModelState), with new running statistics when `train`.
    levels: how often the images are halved.
  """

  init: Callable[[jax.Array], types.ModelState]
  apply: Callable[..., tuple[jax.Array, types.ModelState]]
  levels: int


def encoder_decoder(
  spec: types.DataSpec,
  *,
  outputs: int,
  widths: tuple[int, ...] = (32, 64, 128),
) -> Generator:
  """The generators of Input-aware's patterns and masks.

  Args:
    spec: shape and normalization of the images.
    outputs: number of maps, d.
    widths: channels of the levels; only as many are used as leave maps of 2×2
      at least.

  Returns:
    The generator; its maps are not bounded.

  Raises:
    ValueError: if images cannot be halved.
  """
  levels = functional.depth(*spec.image_shape[:2], len(widths), smallest=2)
  net = _EncoderDecoder(outputs=outputs, widths=widths[:levels])
  return _pure(net, spec, levels)


def strided_autoencoder(
  spec: types.DataSpec, *, widths: tuple[int, ...] = (16, 32, 64, 128)
) -> Generator:
  """LIRA's autoencoder.

  Args:
    spec: shape and normalization of the images.
    widths: channels of the levels; only as many are used as images can be
      halved: four for 16×16 images, three for 8×8.

  Returns:
    The generator; as many maps as the images have channels, in [−1, 1].

  Raises:
    ValueError: if images cannot be halved.
  """
  levels = functional.depth(*spec.image_shape[:2], len(widths))
  net = _Strided(outputs=spec.image_shape[-1], widths=widths[:levels])
  return _pure(net, spec, levels)


def skip_autoencoder(
  spec: types.DataSpec, *, widths: tuple[int, ...] = (64, 128, 256, 512)
) -> Generator:
  """LIRA's U-Net.

  Args:
    spec: shape and normalization of the images.
    widths: channels of the levels, the last one at the bottom; only as many
      are used as images can be halved, and one more.

  Returns:
    The generator; as many maps as the images have channels, in [−1, 1].

  Raises:
    ValueError: if images cannot be halved.
  """
  levels = functional.depth(*spec.image_shape[:2], len(widths) - 1)
  net = _Skips(outputs=spec.image_shape[-1], widths=widths[: levels + 1])
  return _pure(net, spec, levels)


def _pure(net: nn.Module, spec: types.DataSpec, levels: int) -> Generator:
  """The pure functions of a module called as net(normalized images, train)."""
  center, spread = (
    jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
    for values in (spec.mean, spec.std)
  )
  blank = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
  shapes = jax.eval_shape(
    lambda key, x: net.init(key, x, False), jax.random.key(0), blank
  )

  @jax.jit
  def init(key: jax.Array) -> types.ModelState:
    return types.ModelState(
      params=initial.draw(key, shapes['params'], _law),
      batch_stats=initial.statistics(shapes['batch_stats']),
    )

  def apply(state, images, *, train=False):
    variables = {'params': state.params, 'batch_stats': state.batch_stats}
    x = (images - center) / spread
    if not train:
      maps = net.apply(variables, x, False)
      assert isinstance(maps, jax.Array)
      return maps, state
    maps, new = net.apply(variables, x, True, mutable=['batch_stats'])
    return maps, types.ModelState(
      params=state.params, batch_stats=new['batch_stats']
    )

  return Generator(init, apply, levels)


def _law(path, shape, kernel) -> initial.Law:
  """Torch's defaults; transposed convolutions count outputs as inputs."""
  if kernel is not None and path[0].startswith('transposed'):
    fan = math.prod(kernel[:2]) * kernel[-1]
    return initial.Law('uniform', fan**-0.5)
  return _TORCH(path, shape, kernel)


class _EncoderDecoder(nn.Module):
  """See `encoder_decoder`."""

  outputs: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    step = functools.partial(_conv_norm, train=train, decay=0.95)
    for i, width in enumerate(self.widths):
      x = nn.relu(step(x, width, f'down{i}_1'))
      x = layers.max_pool(nn.relu(step(x, width, f'down{i}_2')))
    x = nn.relu(step(x, self.widths[-1], 'middle'))
    below = (self.widths[0], *self.widths)
    for i in reversed(range(len(self.widths))):
      x = nn.relu(step(doubled(x), self.widths[i], f'up{i}_1'))
      x = nn.relu(step(x, below[i], f'up{i}_2')) if i else x
    return step(x, self.outputs, 'up0_2')


class _Strided(nn.Module):
  """See `strided_autoencoder`."""

  outputs: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for i, width in enumerate(self.widths):
      name = f'down{i}'
      x = layers.conv(
        width, 4, 2, name=f'{name}_conv', use_bias=True, padding=1
      )(x)
      x = nn.relu(norm.BatchNorm(name=f'{name}_norm')(x, train))
    for i in reversed(range(1, len(self.widths))):
      x = _Transposed(self.widths[i - 1], name=f'transposed{i}')(x)
      x = nn.relu(norm.BatchNorm(name=f'up{i}_norm')(x, train))
    return jnp.tanh(_Transposed(self.outputs, name='transposed0')(x))


class _Skips(nn.Module):
  """See `skip_autoencoder`."""

  outputs: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    def block(x, width, name):
      for i in (1, 2):
        x = nn.relu(_conv_norm(x, width, f'{name}_{i}', train=train))
      return x

    seen = []
    for i, width in enumerate(self.widths[:-1]):
      seen.append(block(x, width, f'down{i}'))
      x = layers.average_pool(seen[-1])
    x = block(x, self.widths[-1], 'bottom')
    for i in reversed(range(len(seen))):
      x = jnp.concatenate([doubled(x, is_aligned=True), seen[i]], -1)
      x = block(x, self.widths[i], f'up{i}')
    return jnp.tanh(_conv_norm(x, self.outputs, 'head', train=train, size=1))


class _Transposed(nn.Module):
  """A transposed 4×4 convolution of stride 2, [b, h, w, c] to twice the size.

  Every pixel of the result sees 2×2 pixels, with a quarter of the kernel that
  its place decides: one 2×2 convolution makes all four places.
  """

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (4, 4, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.zeros, shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return transposed_conv4(x, kernel) + bias.reshape(1, 1, 1, -1)


def _conv_norm(
  x: jax.Array,
  features: int,
  name: str,
  *,
  train: bool,
  decay: float = 0.9,
  size: int = 3,
) -> jax.Array:
  """Convolution with bias and norm, within a compact module."""
  x = layers.conv(features, size, name=f'{name}_conv', use_bias=True)(x)
  return norm.BatchNorm(decay, name=f'{name}_norm')(x, train)


def transposed_conv4(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 4×4 transposed convolution of stride 2 and padding 1.

  out[2i + p] = Σ_a x[i + p + a − 1] · kernel[2a + p] along each axis: the sum
  over the image dilated by 2, whose kernel is laid on as it is.

  Args:
    x: [b, h, w, c].
    kernel: [4, 4, c, d].

  Returns:
    [b, 2h, 2w, d].
  """
  b, h, w, c = x.shape
  d = kernel.shape[-1]
  parts = kernel.reshape(2, 2, 2, 2, c, d).transpose(0, 2, 4, 1, 3, 5)
  layer = {'kernel': parts.reshape(2, 2, c, 4 * d)}
  out = functional.conv(layer, x, padding=(1, 1))
  out = out.reshape(b, h + 1, w + 1, 2, 2, d)
  rows = [out[:, p : p + h, :, p] for p in (0, 1)]
  whole = jnp.stack(rows, 2).reshape(b, 2 * h, w + 1, 2, d)
  columns = [whole[:, :, q : q + w, q] for q in (0, 1)]
  return jnp.stack(columns, 3).reshape(b, 2 * h, 2 * w, d)


def doubled(x: jax.Array, *, is_aligned: bool = False) -> jax.Array:
  """Bilinear interpolation to twice the size, [b, h, w, c].

  Args:
    x: the maps.
    is_aligned: whether the corner pixels keep their place (torch's
      align_corners); otherwise pixels are split in the middle.

  Returns:
    [b, 2h, 2w, c].
  """
  rows, columns = (
    jnp.asarray(_linear(n, is_aligned), x.dtype) for n in x.shape[1:3]
  )
  return jnp.einsum('ih,bhwc,jw->bijc', rows, x, columns)


def _linear(n: int, is_aligned: bool) -> np.ndarray:
  """Interpolation matrix [2n, n]."""
  out = np.arange(2 * n)
  place = out * (n - 1) / (2 * n - 1) if is_aligned else (out - 0.5) / 2
  place = np.clip(place, 0, n - 1)
  return np.maximum(1 - np.abs(place[:, None] - np.arange(n)[None]), 0)
