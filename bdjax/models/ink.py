"""The networks of PoisonInk: one hides a picture in an image, one reveals it.

`hide` is a U-Net: two 3×3 convolutions with BatchNorm and ReLU per level,
maxima on the way down, bilinear up-sampling with aligned corners on the way up,
a linear 1×1 convolution at the end. `reveal` is a residual network at half the
resolution: three convolutions, seven blocks of dilation 2 2 2 4 4 4 1, a
transposed convolution back, two convolutions; instance norms with scale and
shift, ReLU also at the end. Kernels start normal with deviation 0.02, biases
at 0.

The U-Net has the published four levels on images whose sides are multiples of
16, but halves none below 2 pixels: three levels for 16×16, two for 8×8.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.models import functional, initial, layers, norm

_MOST_LEVELS = 4
_DILATIONS = (2, 2, 2, 4, 4, 4, 1)
_DECAY = 0.9  # of the running statistics
_EPS = 1e-5


class InkNetworks(NamedTuple):
  """Two networks as pure functions.

  Attributes:
    init: key -> {'hide': params, 'reveal': params}.
    init_stats: () -> running statistics of `hide`.
    hide: (params, stats, images [b, h, w, c], secrets of the same shape, train)
      -> (images, stats); values are not bounded.
    reveal: (params, images) -> secrets, not negative.
    levels: how often `hide` halves images.
  """

  init: Callable[[jax.Array], types.PyTree]
  init_stats: Callable[[], types.PyTree]
  hide: Callable[..., tuple[jax.Array, types.PyTree]]
  reveal: Callable[[types.PyTree, jax.Array], jax.Array]
  levels: int


def ink_networks(
  image_shape: tuple[int, int, int], *, width: int = 64, reveal_width: int = 128
) -> InkNetworks:
  """Makes the pair of networks.

  Args:
    image_shape: (h, w, c).
    width: channels of the U-Net's first level, doubled by every further one
      but the last.
    reveal_width: channels of the revealing network.

  Returns:
    The networks.

  Raises:
    ValueError: for a width that is not positive, or images of odd sides.
  """
  h, w, c = image_shape
  checks.positive(width=width, reveal_width=reveal_width)
  levels = functional.depth(h, w, _MOST_LEVELS, smallest=2)
  widths = [width * 2**i for i in range(levels)]
  widths.append(widths[-1])
  shapes = {
    'hide': _hide_shapes(c, widths),
    'reveal': _reveal_shapes(c, reveal_width),
  }
  start = initial.normal(0.02)

  @jax.jit
  def init(key: jax.Array) -> types.PyTree:
    return initial.draw(key, shapes, initial.rule(start, start))

  def init_stats() -> types.PyTree:
    return jax.tree.map(jnp.asarray, _fresh_stats(shapes['hide']))

  def hide(params, stats, images, secrets, train: bool = False):
    x = jnp.concatenate([images, secrets], -1)
    return _hide(params, stats, x, levels, train)

  return InkNetworks(init, init_stats, hide, _reveal, levels)


def _norm_shape(channels: int) -> types.PyTree:
  return {'scale': functional.leaf(channels), 'bias': functional.leaf(channels)}


def _conv_norm(size: int, inputs: int, outputs: int) -> types.PyTree:
  """A convolution without bias and the norm behind it."""
  conv = functional.conv_shape(size, inputs, outputs, bias=False)
  return {'conv': conv, 'norm': _norm_shape(outputs)}


def _hide_shapes(c: int, widths: list[int]) -> types.PyTree:
  block = lambda a, b: {'1': _conv_norm(3, a, b), '2': _conv_norm(3, b, b)}
  params = {'down0': block(2 * c, widths[0])}
  below = widths[-1]
  for i in range(1, len(widths)):
    params[f'down{i}'] = block(widths[i - 1], widths[i])
  for i in range(len(widths) - 1, 0, -1):
    out = widths[max(i - 2, 0)]
    params[f'up{i}'] = block(widths[i - 1] + below, out)
    below = out
  return params | {'head': functional.conv_shape(1, below, c)}


def _fresh_stats(params: types.PyTree) -> types.PyTree:
  """Mean 0 and variance 1 for every norm of the U-Net."""
  fresh = lambda layer: {
    'mean': np.zeros(layer['norm']['scale'].shape, np.float32),
    'var': np.ones(layer['norm']['scale'].shape, np.float32),
  }
  blocks = {name: block for name, block in params.items() if name != 'head'}
  return {
    name: {i: fresh(layer) for i, layer in block.items()}
    for name, block in blocks.items()
  }


def _hide(params, stats, x, levels: int, train: bool):
  """The U-Net and its new statistics."""
  new = {}

  def through(name, x):
    x, new[name] = _block(params[name], stats[name], x, train)
    return x

  maps = [through('down0', x)]
  for i in range(1, levels + 1):
    maps.append(through(f'down{i}', _halved(maps[-1])))
  x = maps.pop()
  for i in range(levels, 0, -1):
    x = jnp.concatenate([maps.pop(), doubled(x)], -1)
    x = through(f'up{i}', x)
  return functional.conv(params['head'], x), new


def _block(params, stats, x, train: bool):
  """Twice convolution, BatchNorm, ReLU."""
  new = {}
  for i in ('1', '2'):
    x = functional.conv(params[i]['conv'], x)
    x, new[i] = _batch_norm(params[i]['norm'], stats[i], x, train)
    x = jax.nn.relu(x)
  return x, new


def _batch_norm(params, stats, x, train: bool):
  if not train:
    out = norm.apply_affine(
      x, stats['mean'], stats['var'], params['scale'], params['bias'], _EPS
    )
    return out, stats
  mean, var = norm.moments(x)
  out = norm.apply_affine(x, mean, var, params['scale'], params['bias'], _EPS)
  seen = {'mean': mean, 'var': norm.unbiased(var, x.size // x.shape[-1])}
  move = lambda old, new: _DECAY * old + (1 - _DECAY) * new
  return out, jax.lax.stop_gradient(jax.tree.map(move, stats, seen))


def _halved(x: jax.Array) -> jax.Array:
  """Maxima of 2×2 windows.

  Pair by pair: the gradient of a maximum over an axis looks for the maximum
  among values that XLA may have computed again, a rounding error off; where it
  finds none, it divides by zero.
  """
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def doubled(x: jax.Array) -> jax.Array:
  """Bilinear up-sampling by 2 with aligned corners, [b, h, w, c]."""
  rows, columns = (jnp.asarray(_between(n), x.dtype) for n in x.shape[1:3])
  return jnp.einsum('ih,bhwc,jw->bijc', rows, x, columns)


def _between(n: int) -> np.ndarray:
  """Weights [2n, n] of n values at 2n places from the first to the last."""
  at = np.linspace(0, n - 1, 2 * n)
  return np.maximum(1 - np.abs(at[:, None] - np.arange(n)[None]), 0)


def _reveal_shapes(c: int, width: int) -> types.PyTree:
  params = {
    'conv1': _conv_norm(3, c, width),
    'conv2': _conv_norm(3, width, width),
    'conv3': _conv_norm(3, width, width),
    'back': _conv_norm(4, width, width),
    'conv4': _conv_norm(3, width, width),
    'head': functional.conv_shape(1, width, c),
  }
  for i in range(len(_DILATIONS)):
    for part in 'ab':
      params[f'block{i}{part}'] = _conv_norm(3, width, width)
  return params


def _reveal(params: types.PyTree, images: jax.Array) -> jax.Array:
  """What is hidden in images."""
  conv = lambda name, x, **options: _instance_norm(
    params[name]['norm'],
    functional.conv(params[name]['conv'], x, **options),
  )
  x = jax.nn.relu(conv('conv1', images))
  x = jax.nn.relu(conv('conv2', x))
  x = jax.nn.relu(conv('conv3', x, stride=2))
  for i, d in enumerate(_DILATIONS):
    y = jax.nn.relu(conv(f'block{i}a', x, dilation=d))
    x = jax.nn.relu(x + conv(f'block{i}b', y, dilation=d))
  x = jax.nn.relu(conv('back', _spread(x), padding=(2, 2)))
  x = jax.nn.relu(conv('conv4', x))
  return jax.nn.relu(functional.conv(params['head'], x))


def _spread(x: jax.Array) -> jax.Array:
  """Zeros between pixels: a 4×4 convolution then is a transposed one."""
  gap = ((0, 0, 0), (0, 0, 1), (0, 0, 1), (0, 0, 0))
  return jax.lax.pad(x, jnp.zeros((), x.dtype), gap)


def _instance_norm(params, x: jax.Array) -> jax.Array:
  shape = (1, 1, 1, -1)
  scale, bias = params['scale'].reshape(shape), params['bias'].reshape(shape)
  return layers.instance_norm(x) * scale + bias
