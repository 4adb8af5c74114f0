"""Initial weights, drawn for a whole network at once.

A network needs one random array instead of one per layer: compiling some twenty
generators of different shapes takes longer than compiling the network.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import types


class Law(NamedTuple):
  """How the entries of a leaf are distributed.

  Attributes:
    kind: 'uniform' in ±size, 'normal' around 0 or 'constant'.
    size: half width, deviation or value.
  """

  kind: Literal['uniform', 'normal', 'constant']
  size: float


Shape = tuple[int, ...]
# The shape of a kernel -> the law of its layer's kernel, or of its bias.
LayerLaw = Callable[[Shape], Law]
# (path of the leaf, its shape, shape of its layer's kernel or None) -> law.
Rule = Callable[[tuple[str, ...], Shape, Shape | None], Law]


def uniform_in(kernel: Shape) -> Law:
  """Torch's default for kernels and for their biases, ±1/√fan_in."""
  return Law('uniform', math.prod(kernel[:-1]) ** -0.5)


def uniform_out(kernel: Shape) -> Law:
  """±1/√(number of outputs)."""
  return Law('uniform', kernel[-1] ** -0.5)


def he_in(kernel: Shape) -> Law:
  """Normal of deviation √(2 / fan_in)."""
  return Law('normal', (2 / math.prod(kernel[:-1])) ** 0.5)


def he_out(kernel: Shape) -> Law:
  """Normal of deviation √(2 / fan_out); groups do not count, as in torch."""
  return Law('normal', (2 / (kernel[-1] * math.prod(kernel[:-2]))) ** 0.5)


def normal(deviation: float) -> LayerLaw:
  """Normal of one deviation, whatever the shape."""
  return lambda kernel: Law('normal', deviation)


def zero(kernel: Shape) -> Law:
  """Zeros."""
  del kernel
  return Law('constant', 0.0)


def rule(conv: LayerLaw, dense: LayerLaw, bias: LayerLaw = zero) -> Rule:
  """Laws by kind of layer; norms scale by 1 and shift by 0.

  Args:
    conv: law of the kernels of convolutions.
    dense: law of the kernels of linear layers.
    bias: law of the biases of both, from the shape of their kernel.

  Returns:
    The rule for `draw`.
  """

  def law(path, shape, kernel):
    if kernel is None:
      return Law('constant', float(path[-1] == 'scale'))
    if path[-1] != 'kernel':
      return bias(kernel)
    return conv(shape) if len(shape) == 4 else dense(shape)

  return law


def drawn(rule: Rule) -> Callable[[jax.Array, types.PyTree], types.PyTree]:
  """The `draw` of a rule: (key, shapes) -> weights."""
  return lambda key, shapes: draw(key, shapes, rule)


def torch_default(key: jax.Array, shapes: types.PyTree) -> types.PyTree:
  """Torch's defaults: kernels and their biases uniform in ±1/√fan_in.

  Norms scale by 1 and shift by 0.

  Args:
    key: key of the whole network.
    shapes: `params` as nested dicts of arrays or of their abstract values.

  Returns:
    Weights of these shapes, float32.
  """
  return draw(key, shapes, rule(uniform_in, uniform_in, uniform_in))


def vgg(key: jax.Array, shapes: types.PyTree) -> types.PyTree:
  """Torchvision's weights for VGG and MobileNetV3, all normal.

  Deviation √(2 / fan_out) for convolutions and 0.01 for linear layers, whose
  biases are 0. Arguments and result are those of `torch_default`.
  """
  return draw(key, shapes, rule(he_out, normal(0.01)))


def statistics(shapes: types.PyTree) -> types.PyTree:
  """Running statistics of a network that has seen nothing: mean 0, var 1."""

  def fill(path, leaf):
    return jnp.full(leaf.shape, path[-1].key == 'var', jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def draw(key: jax.Array, shapes: types.PyTree, rule: Rule) -> types.PyTree:
  """Weights of a whole network: one sample per kind of law, cut into leaves.

  Args:
    key: key of the whole network.
    shapes: `params` as nested dicts of arrays or of their abstract values.
    rule: the law of every leaf.

  Returns:
    Weights of these shapes, float32.
  """
  leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
  paths = [tuple(part.key for part in path) for path, _ in leaves]
  kernels = {
    path[:-1]: leaf.shape
    for path, (_, leaf) in zip(paths, leaves, strict=True)
    if path[-1] == 'kernel'
  }
  laws = [
    rule(path, leaf.shape, kernels.get(path[:-1]))
    for path, (_, leaf) in zip(paths, leaves, strict=True)
  ]
  take = _sampler(key, laws, [leaf.size for _, leaf in leaves])
  values = [
    jnp.full(leaf.shape, law.size, jnp.float32)
    if law.kind == 'constant'
    else law.size * take(law.kind, leaf.size).reshape(leaf.shape)
    for law, (_, leaf) in zip(laws, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, values)


def _sampler(key, laws, sizes):
  """(kind, size) -> the next numbers of this kind, of size 1."""
  counts = {'uniform': 0, 'normal': 0}
  for law, size in zip(laws, sizes, strict=True):
    if law.kind != 'constant':
      counts[law.kind] += size
  keys = {'uniform': key, 'normal': key}
  if all(counts.values()):
    keys = dict(zip(keys, jax.random.split(key), strict=True))
  numbers = {}
  if counts['uniform']:
    numbers['uniform'] = jax.random.uniform(
      keys['uniform'], (counts['uniform'],), jnp.float32, -1.0, 1.0
    )
  if counts['normal']:
    numbers['normal'] = jax.random.normal(
      keys['normal'], (counts['normal'],), jnp.float32
    )
  used = dict.fromkeys(numbers, 0)

  def take(kind, size):
    start = used[kind]
    used[kind] += size
    return numbers[kind][start : start + size]

  return take
