"""A fully connected net that turns an image into values of the same shape.

Four linear layers, d → width → width → width → d for d = h·w·c entries, with
ReLU between them and tanh at the end. Images are normalized in front of it.

It grows with the number of pixels: at width 1024 it has 8.4 million weights
for 32×32×3 images, 27 million for 64×64×3 and 311 million for 224×224×3, which
with gradient and momentum are 3.7 GB.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, types
from bdjax.models import initial

_LAYERS = ('encode1', 'encode2', 'decode1', 'decode2')


class Autoencoder(NamedTuple):
  """A generator as pure functions.

  Attributes:
    init: key -> params.
    apply: (params, images [b, h, w, c] in [0, 1]) -> values in [-1, 1] of the
      same shape.
  """

  init: Callable[[jax.Array], types.PyTree]
  apply: Callable[[types.PyTree, jax.Array], jax.Array]


def autoencoder(
  image_shape: tuple[int, int, int],
  *,
  mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
  width: int = 1024,
) -> Autoencoder:
  """Makes the net.

  Args:
    image_shape: (h, w, c).
    mean: subtracted in front of the net, per channel; None = 0.
    std: divided by in front of the net, per channel; None = 1.
    width: units of every hidden layer.

  Returns:
    The generator; its weights start as torch's do, uniform in ±1/√fan_in.

  Raises:
    ValueError: for a width that is not positive.
  """
  checks.positive(width=width)
  c = image_shape[-1]
  center = jnp.asarray(mean or (0.0,) * c, jnp.float32).reshape(1, 1, 1, -1)
  spread = jnp.asarray(std or (1.0,) * c, jnp.float32).reshape(1, 1, 1, -1)
  shapes = _shapes(math.prod(image_shape), width)

  @jax.jit
  def init(key: jax.Array) -> types.PyTree:
    return initial.torch_default(key, shapes)

  def apply(params: types.PyTree, images: jax.Array) -> jax.Array:
    x = ((images - center) / spread).reshape(len(images), -1)
    for name in _LAYERS[:-1]:
      x = jax.nn.relu(_linear(params[name], x))
    return jnp.tanh(_linear(params[_LAYERS[-1]], x)).reshape(images.shape)

  return Autoencoder(init, apply)


def _shapes(d: int, width: int) -> types.PyTree:
  """Abstract parameters."""
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  sizes = (d, width, width, width, d)
  return {
    name: {'kernel': leaf(a, b), 'bias': leaf(b)}
    for name, a, b in zip(_LAYERS, sizes[:-1], sizes[1:], strict=True)
  }


def _linear(layer: types.PyTree, x: jax.Array) -> jax.Array:
  return x @ layer['kernel'] + layer['bias'][None]
