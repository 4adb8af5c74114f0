"""U-Nets that turn an image into an image of the same shape.

An encoder of `levels` blocks, each followed by a 2×2 maximum, a block at the
bottom, and a decoder that doubles the size again and sees the encoder's maps.
A block is twice: 3×3 convolution, instance norm, leaky ReLU. The last layer is
linear, so that values are not bounded; images are normalized in front of the
net and put back behind it, G(x) = n⁻¹(U(n(x))).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, types
from bdjax.models import conv as conv_lib
from bdjax.models import initial, layers

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
_MOST_LEVELS = 4
_SLOPE = 0.01


class UNet(NamedTuple):
  """A generator of images as pure functions.

  Attributes:
    init: key -> params.
    apply: (params, images [b, h, w, c] in [0, 1]) -> images of the same shape,
      not clipped.
    levels: how often the images are halved.
  """

  init: Callable[[jax.Array], types.PyTree]
  apply: Callable[[types.PyTree, jax.Array], jax.Array]
  levels: int


def unet(
  image_shape: tuple[int, int, int],
  *,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  width: int = 32,
  levels: int | None = None,
) -> UNet:
  """Makes a U-Net.

  Convolutions in front of an instance norm, which would take a bias away
  again, have none. Every image is normalized by itself: results do not depend
  on the batch.

  Args:
    image_shape: (h, w, c).
    mean: subtracted in front of the net, per channel; None = 0.
    std: divided by in front of the net, per channel; None = 1.
    width: channels of the first block, doubled by every level.
    levels: how often h and w are halved; None = four times, or less where the
      lowest map would be smaller than 2×2: three for 16×16, two for 8×8.

  Returns:
    The generator.

  Raises:
    ValueError: for a width or levels that are not positive, or images that
      cannot be halved so often.
  """
  h, w, c = image_shape
  checks.positive(width=width, levels=levels)
  levels = _levels(h, w, levels)
  center = jnp.asarray(mean or (0.0,) * c, jnp.float32).reshape(1, 1, 1, -1)
  spread = jnp.asarray(std or (1.0,) * c, jnp.float32).reshape(1, 1, 1, -1)
  shapes = _shapes(c, width, levels)

  @jax.jit
  def init(key: jax.Array) -> types.PyTree:
    return initial.torch_default(key, shapes)

  def apply(params: types.PyTree, images: jax.Array) -> jax.Array:
    x = (images - center) / spread
    return _forward(params, x, levels) * spread + center

  return UNet(init, apply, levels)


def _levels(h: int, w: int, levels: int | None) -> int:
  """The depth asked for, or the largest sensible one."""
  fits = lambda n: h % 2**n == 0 and w % 2**n == 0
  if levels is None:
    roomy = [n for n in range(1, _MOST_LEVELS + 1) if min(h, w) >= 2 ** (n + 1)]
    levels = max(filter(fits, roomy), default=1)
  if not fits(levels):
    raise ValueError(
      f'`levels={levels}` cannot halve {h}×{w} images so often; take fewer '
      f'levels, or images whose sides are multiples of {2**levels}.'
    )
  return levels


def _shapes(c: int, width: int, levels: int) -> types.PyTree:
  """Abstract parameters."""
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  block = lambda a, b: {
    'conv1': {'kernel': leaf(3, 3, a, b)},
    'conv2': {'kernel': leaf(3, 3, b, b)},
  }
  widths = [width * 2**i for i in range(levels + 1)]
  params: dict = {'bottom': block(widths[-2], widths[-1])}
  for i, d in enumerate(widths[:-1]):
    params[f'down{i}'] = block(widths[i - 1] if i else c, d)
    up = {'kernel': leaf(2, 2, 2 * d, d), 'bias': leaf(d)}
    params[f'up{i}'] = {'up': up, **block(2 * d, d)}
  params['head'] = {'kernel': leaf(1, 1, width, c), 'bias': leaf(c)}
  return params


def _forward(params: types.PyTree, x: jax.Array, levels: int) -> jax.Array:
  seen = []
  for i in range(levels):
    x = _block(params[f'down{i}'], x)
    seen.append(x)
    x = layers.max_pool(x)
  x = _block(params['bottom'], x)
  for i in reversed(range(levels)):
    part = params[f'up{i}']
    x = _biased(part['up'], layers.transposed_conv(x, part['up']['kernel']))
    x = _block(part, jnp.concatenate([x, seen[i]], -1))
  return _biased(params['head'], _conv(params['head'], x))


def _block(params: types.PyTree, x: jax.Array) -> jax.Array:
  for name in ('conv1', 'conv2'):
    x = layers.instance_norm(_conv(params[name], x))
    x = jax.nn.leaky_relu(x, _SLOPE)
  return x


def _conv(layer: types.PyTree, x: jax.Array) -> jax.Array:
  """Stride 1, the size kept; the route that is fast in loops."""
  kernel = layer['kernel']
  pad = kernel.shape[0] // 2
  return conv_lib.conv_general_dilated(
    x, kernel, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=_LAYOUT
  )


def _biased(layer: types.PyTree, x: jax.Array) -> jax.Array:
  return x + layer['bias'].reshape(1, 1, 1, -1)
