"""StegaStamp networks: one hides bits in an image, the other reads them.

The encoder is a U-Net without norms. It sees the image and the bits, spread
over a small picture by a linear layer and repeated up to the image's size; what
it returns is the whole image anew. The decoder is seven convolutions and two
linear layers. ReLU throughout; weights start He-normal, biases at 0.

Images whose sides are multiples of 16 get the published depth of four levels.
Others are halved as often as their sides allow, 8×8 three times; the picture of
the bits has the largest sides up to 16 that divide the image's.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, types
from bdjax.models import functional, initial

_MOST_LEVELS = 4
_MOST_SIDE = 16  # of the picture of the bits
_DECODER = ((1, 2), (1, 1), (2, 2), (2, 1), (2, 2), (4, 2), (4, 2))


class StegaStamp(NamedTuple):
  """An encoder and a decoder as pure functions.

  Attributes:
    init: key -> {'encoder': params, 'decoder': params}.
    hide: (params of the encoder, images [b, h, w, c] in [0, 1], bits [b, n])
      -> images of the same shape in [0, 1].
    reveal: (params of the decoder, images) -> logits [b, n] of the bits.
    num_bits: n.
    levels: how often the encoder halves images.
  """

  init: Callable[[jax.Array], types.PyTree]
  hide: Callable[[types.PyTree, jax.Array, jax.Array], jax.Array]
  reveal: Callable[[types.PyTree, jax.Array], jax.Array]
  num_bits: int
  levels: int


def stegastamp(
  image_shape: tuple[int, int, int],
  *,
  num_bits: int = 100,
  width: int = 32,
  residual: bool = False,
) -> StegaStamp:
  """Makes the pair of networks.

  Args:
    image_shape: (h, w, c).
    num_bits: n, bits per image.
    width: channels at full resolution; deeper levels have up to eight times
      as many.
    residual: x' = clip(x + E(x, m)) in place of x' = sigmoid(E(x, m)).

  Returns:
    The networks.

  Raises:
    ValueError: for a count that is not positive, or images of odd sides.
  """
  h, w, c = image_shape
  checks.positive(num_bits=num_bits, width=width)
  levels = functional.depth(h, w, _MOST_LEVELS)
  grid = _grid(h), _grid(w), c
  shapes = {
    'encoder': _encoder_shapes(c, width, levels, num_bits, grid),
    'decoder': _decoder_shapes(image_shape, width, num_bits),
  }

  @jax.jit
  def init(key: jax.Array) -> types.PyTree:
    return initial.draw(key, shapes, initial.rule(initial.he_in, initial.he_in))

  def hide(params, images: jax.Array, bits: jax.Array) -> jax.Array:
    plane = jax.nn.relu(functional.dense(params['message'], bits))
    plane = plane.reshape(-1, *grid)
    plane = functional.repeated(plane, (h // grid[0], w // grid[1]))
    out = _encode(params, jnp.concatenate([plane, images], -1), levels)
    return jnp.clip(images + out, 0, 1) if residual else jax.nn.sigmoid(out)

  return StegaStamp(init, hide, _decode, num_bits, levels)


def _grid(side: int) -> int:
  """The largest divisor of a side that is at most 16."""
  return max(n for n in range(1, _MOST_SIDE + 1) if side % n == 0)


def _widths(width: int, levels: int) -> list[int]:
  """Channels of the encoder's maps, the largest map first."""
  return [width] + [width * 2**i for i in range(levels)]


def _encoder_shapes(c, width, levels, num_bits, grid) -> types.PyTree:
  conv, widths = functional.conv_shape, _widths(width, levels)
  flat = grid[0] * grid[1] * grid[2]
  params = {
    'message': functional.dense_shape(num_bits, flat),
    'first': conv(3, 2 * c, width),
    'last': conv(3, width, width),
    'head': conv(1, width, c),
  }
  for i, (above, below) in enumerate(
    zip(widths[:-1], widths[1:], strict=True), 1
  ):
    seen = 2 * above + (2 * c if i == 1 else 0)
    params[f'down{i}'] = conv(3, above, below)
    params[f'up{i}'] = conv(2, below, above)
    params[f'merge{i}'] = conv(3, seen, above)
  return params


def _encode(params: types.PyTree, inputs: jax.Array, levels: int) -> jax.Array:
  """What the encoder makes of the bits' picture and the image."""
  conv = lambda name, x, *args, **options: jax.nn.relu(
    functional.conv(params[name], x, *args, **options)
  )
  maps = [conv('first', inputs)]
  for i in range(1, levels + 1):
    maps.append(conv(f'down{i}', maps[-1], 2))
  x = maps.pop()
  for i in range(levels, 0, -1):
    x = conv(f'up{i}', functional.repeated(x, 2), padding=(0, 1))
    seen = [maps.pop(), x] + ([inputs] if i == 1 else [])
    x = conv(f'merge{i}', jnp.concatenate(seen, -1))
  return functional.conv(params['head'], conv('last', x))


def _decoder_shapes(image_shape, width, num_bits) -> types.PyTree:
  h, w, inputs = image_shape
  params = {}
  for i, (factor, stride) in enumerate(_DECODER, 1):
    params[f'conv{i}'] = functional.conv_shape(3, inputs, factor * width)
    h, w, inputs = -(-h // stride), -(-w // stride), factor * width
  hidden = 16 * width
  params['dense'] = functional.dense_shape(h * w * inputs, hidden)
  params['head'] = functional.dense_shape(hidden, num_bits)
  return params


def _decode(params: types.PyTree, images: jax.Array) -> jax.Array:
  """Logits of the bits."""
  x = images
  for i, (_, stride) in enumerate(_DECODER, 1):
    x = jax.nn.relu(functional.conv(params[f'conv{i}'], x, stride))
  x = x.reshape(len(x), -1)
  x = jax.nn.relu(functional.dense(params['dense'], x))
  return functional.dense(params['head'], x)
