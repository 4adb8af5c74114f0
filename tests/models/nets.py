"""What the tests of the architectures share."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import models, tree, types
from bdjax.models import layers


def spec(side: int = 32, classes: int = 10) -> types.DataSpec:
  return types.DataSpec(
    name='images',
    image_shape=(side, side, 3),
    num_classes=classes,
    mean=(0.5, 0.4, 0.6),
    std=(0.25, 0.2, 0.3),
  )


def num_weights(arch: str, classes: int, **options) -> int:
  """Counted without drawing a single one."""
  model = models.make(arch, spec(classes=classes), **options)
  return tree.count(jax.eval_shape(model.init, jax.random.key(0)).params)


def images(side: int = 32, num: int = 2) -> jax.Array:
  return jax.random.uniform(jax.random.key(7), (num, side, side, 3))


def lively(model: types.Classifier) -> types.ModelState:
  """Weights and running statistics of which none is 0 or 1."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key if hasattr(path[-1], 'key') else ''
    fan_in = max(int(np.prod(leaf.shape[:-1])), 1)
    x = rng.normal(size=leaf.shape)
    if name in ('scale', 'var'):
      x = 1 + 0.5 * np.tanh(x)
    elif len(leaf.shape) > 1:
      x = x * (2 / fan_in) ** 0.5
    return jnp.asarray(x, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def features(model: types.Classifier, state: types.ModelState, x) -> dict:
  """All activations as NumPy arrays in double precision."""
  found = jax.jit(model.features)(state, x)
  return {name: np.asarray(a, np.float64) for name, a in found.items()}


def sides(model: types.Classifier, *taps: str) -> list[int]:
  """Heights of activations, without computing any."""
  state = jax.eval_shape(model.init, jax.random.key(0))
  shape = (1, *model.info.image_shape)
  found = jax.eval_shape(
    model.features, state, jax.ShapeDtypeStruct(shape, jnp.float32)
  )
  return [found[tap].shape[1] for tap in taps]


def rates_of_stochastic_depth(model: types.Classifier) -> list[float]:
  """Those of all branches in a training pass, without computing it."""
  state = jax.eval_shape(model.init, jax.random.key(0))
  shape = (2, *model.info.image_shape)
  rates = []

  def record(x, rate, train):
    assert train
    rates.append(rate)
    return x

  with mock.patch.object(layers, 'drop_examples', record):
    jax.eval_shape(
      lambda s, x, key: model.apply(s, x, train=True, key=key),
      state,
      jax.ShapeDtypeStruct(shape, jnp.float32),
      jax.random.key(0),
    )
  return rates


def batch_norm(x, params, stats, eps: float = 1e-5):
  """By the running statistics."""
  p = {k: np.asarray(v, np.float64) for k, v in {**params, **stats}.items()}
  return (x - p['mean']) / np.sqrt(p['var'] + eps) * p['scale'] + p['bias']


def layer_norm(x, params):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * np.asarray(params['scale']) + np.asarray(params['bias'])


def conv(x, kernel, stride: int = 1, padding: int = 0, groups: int = 1):
  """The definition, with zeros on all sides: [b, h, w, c] -> [b, h', w', d]."""
  kernel = np.asarray(kernel, np.float64)
  k, d = kernel.shape[0], kernel.shape[-1]
  x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
  h, w = ((n - k) // stride + 1 for n in x.shape[1:3])
  out = np.zeros((len(x), h, w, d))
  for i in range(h):
    for j in range(w):
      top, left = i * stride, j * stride
      window = x[:, top : top + k, left : left + k]
      parts = np.split(window, groups, -1)
      kernels = np.split(kernel, groups, -1)
      out[:, i, j] = np.concatenate(
        [
          np.einsum('bhwc,hwcd->bd', part, one)
          for part, one in zip(parts, kernels, strict=True)
        ],
        -1,
      )
  return out


def assert_close(a, b, rtol: float = 2e-5):
  """To a share of the largest entry."""
  np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
