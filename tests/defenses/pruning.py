"""What the tests of pruning defenses share."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bdjax import data, models, surgery, training, types
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


class GuaranteesMixin:
  """Tests of what a method leaves of `model()`; for a `TestCase`.

  Attributes:
    pruned_leaves: of a norm's leaves those that are pruned.
  """

  pruned_leaves = ('scale', 'bias')

  def outcome(self) -> types.Carry:
    """Of the method on `model()`; some of its twelve channels are pruned."""
    raise NotImplementedError

  def expected_masks(self, extra) -> dict:
    """{name of the norm: mask} by which the leaves were multiplied."""
    return extra['masks']

  def test_pruned_leaves_are_kept_or_zero_and_all_else_is_bit_identical(self):
    before, carry = model(), self.outcome()
    masks = carry.extra['masks']
    self.assertBetween(int(surgery.num_pruned(masks)), 1, 11)
    expected = self.expected_masks(carry.extra)
    self.assertEqual(masks.keys(), norm_leaf(before, 'scale').keys())
    for leaf in self.pruned_leaves:
      old, new = norm_leaf(before, leaf), norm_leaf(carry.model, leaf)
      for name, mask in masks.items():
        np.testing.assert_array_equal(mask, expected[name])
        want = np.where(np.asarray(mask) == 1, old[name], 0)
        np.testing.assert_array_equal(new[name], want)
    rest = [others(s, self.pruned_leaves) for s in (before, carry.model)]
    chex.assert_trees_all_equal(*rest)

  def test_running_statistics_do_not_move(self):
    after = self.outcome().model.batch_stats
    chex.assert_trees_all_equal(after, model().batch_stats)


class ScoresMixin(GuaranteesMixin):
  """The same of scales whose learned score is not above 0.9."""

  pruned_leaves = ('scale',)

  def expected_masks(self, extra):
    return {k: np.asarray(v) > 0.9 for k, v in extra['scores'].items()}

  def test_masks_stay_in_the_unit_interval(self):
    scores = np.concatenate(list(self.outcome().extra['scores'].values()))
    self.assertEqual(scores.min(), 0)
    self.assertEqual(scores.max(), 1)
