"""What the tests of pruning defenses share."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import data, models, training, types
from tests import small_nets

NET = models.make('tiny', data.spec('synthetic'), width=4)
KEY = jax.random.key(0)
NUM = 10
IMAGES = small_nets.random_images(0, NUM)
LABELS = np.arange(NUM) % 4


def model(seed: int = 0, net: types.Classifier = NET) -> types.ModelState:
  """Initial weights with norms that are none of them the identity."""
  rng = np.random.default_rng(seed)
  state = net.init(jax.random.key(seed))

  def drawn(path, leaf):
    name = path[-1].key
    if name in ('scale', 'var'):
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
    if name in ('mean', 'bias') and leaf.ndim == 1:
      return jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32)
    return leaf

  return jax.tree_util.tree_map_with_path(drawn, state)


def feed(num: int = NUM) -> training.Feed:
  return training.make_feed(IMAGES[:num], LABELS[:num])


def run(defense, state, feeds=None, *, key=KEY, **kwargs):
  """The carry and the metrics of a whole defense."""
  carry = types.Carry(model=state, extra={})
  feeds = {'clean': feed()} if feeds is None else feeds
  return training.run_phases(defense.phases, carry, feeds, key, **kwargs)


def clock(key=KEY) -> types.Clock:
  return types.Clock(key, jnp.int32(0), jnp.int32(0), 1, 1)


def norm_leaf(state: types.ModelState, leaf: str, net=NET) -> dict:
  """{name of the norm: array} of scale, bias, mean or var."""
  tree = state.params if leaf in ('scale', 'bias') else state.batch_stats
  found = {}
  for path in net.info.norm_paths:
    layer = tree
    for name in path:
      layer = layer[name]
    found['.'.join(path)] = np.asarray(layer[leaf])
  return found


def others(state: types.ModelState, leaves=('scale', 'bias')) -> list:
  """All arrays of a state but those leaves of its norms."""
  pairs = jax.tree_util.tree_leaves_with_path(state)
  return [
    np.asarray(leaf)
    for path, leaf in pairs
    if not (path[-1].key in leaves and path[-2].key.startswith('bn'))
  ]
