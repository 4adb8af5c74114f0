"""Initial weights, drawn for a whole network at once.

A network needs one random array instead of one per layer: compiling some twenty
generators of different shapes takes longer than compiling the network.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import types

# (name of the leaf, its shape, shape of the layer's kernel or None) -> half
# width or deviation of its distribution; None where it is not random.
Spread = Callable[[str, tuple[int, ...], tuple[int, ...] | None], float | None]


def torch_default(key: jax.Array, shapes: types.PyTree) -> types.PyTree:
  """Torch's defaults: kernels and their biases uniform in ±1/√fan_in.

  Norms scale by 1 and shift by 0.

  Args:
    key: key of the whole network.
    shapes: `params` as nested dicts of arrays or of their abstract values.

  Returns:
    Weights of these shapes, float32.
  """

  def spread(name, shape, kernel):
    del name, shape
    return None if kernel is None else math.prod(kernel[:-1]) ** -0.5

  def uniform(key, count):
    return jax.random.uniform(key, (count,), jnp.float32, -1.0, 1.0)

  return _draw(key, shapes, spread, uniform)


def vgg(key: jax.Array, shapes: types.PyTree) -> types.PyTree:
  """Torchvision's weights for VGG, all normal.

  Deviation √(2 / fan_out) for convolutions and 0.01 for linear layers, whose
  biases are 0. Arguments and result are those of `torch_default`.
  """

  def spread(name, shape, kernel):
    if name != 'kernel' or kernel is None:
      return None
    fan_out = shape[-1] * math.prod(shape[:-2])
    return (2 / fan_out) ** 0.5 if len(shape) == 4 else 0.01

  def normal(key, count):
    return jax.random.normal(key, (count,), jnp.float32)

  return _draw(key, shapes, spread, normal)


def statistics(shapes: types.PyTree) -> types.PyTree:
  """Running statistics of a network that has seen nothing: mean 0, var 1."""

  def fill(path, leaf):
    return jnp.full(leaf.shape, path[-1].key == 'var', jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _draw(key, shapes, spread: Spread, sample) -> types.PyTree:
  """Cuts one sample into leaves and scales each by its spread."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
  kernels = {p[:-1]: x.shape for p, x in leaves if p[-1].key == 'kernel'}
  spreads = [
    spread(path[-1].key, leaf.shape, kernels.get(path[:-1]))
    for path, leaf in leaves
  ]
  sizes = [
    0 if width is None else math.prod(leaf.shape)
    for width, (_, leaf) in zip(spreads, leaves, strict=True)
  ]
  numbers, start, drawn = sample(key, sum(sizes)), 0, []
  for (path, leaf), width, size in zip(leaves, spreads, sizes, strict=True):
    if width is None:
      one = path[-1].key == 'scale'
      drawn.append(jnp.full(leaf.shape, one, jnp.float32))
    else:
      part = numbers[start : start + size]
      drawn.append(width * part.reshape(leaf.shape))
    start += size
  return jax.tree.unflatten(structure, drawn)
