"""The toy world is what other tests take it for."""

import jax
import numpy as np
from absl.testing import parameterized

from bdjax import types
from tests import toy


class ToyTest(parameterized.TestCase):
  def test_victims_are_accurate_and_backdoored(self):
    rates = toy.evaluate_stack(toy.victims().model, toy.victims())
    self.assertLen(rates, toy.SEEDS)
    for rate in rates:
      self.assertGreaterEqual(rate['c_acc'], 0.95)
      self.assertGreaterEqual(rate['asr'], 0.95)

  def test_clean_model_is_accurate_and_not_backdoored(self):
    rate = toy.evaluate(toy.clean_model(), toy.victim())
    self.assertGreaterEqual(rate['c_acc'], 0.95)
    self.assertLessEqual(rate['asr'], 0.1)
    self.assertIsNone(toy.evaluate(toy.clean_model())['asr'])

  def test_seeds_differ_in_weights_and_poisoned_examples(self):
    one, other = toy.victims()[0], toy.victims()[1]
    for a, b in zip(
      jax.tree.leaves(one.model), jax.tree.leaves(other.model), strict=True
    ):
      self.assertFalse(np.array_equal(a, b))
    self.assertFalse(np.array_equal(one.state.kind, other.state.kind))

  def test_poisoned_training_sets_are_their_victims(self):
    feed, kinds = toy.poisoned_train(), np.asarray(toy.victims().state.kind)
    clean = toy.dataset().train
    target = toy.attack().info.target_label
    self.assertEqual(feed.images.dtype, np.uint8)
    for i, kind in enumerate(kinds):
      is_other = np.any(feed.images[i] != clean.images, axis=(1, 2, 3))
      # A poisoned image may have had the trigger's pixels before.
      self.assertFalse(np.any(is_other & (kind != types.POISONED)))
      self.assertGreater(is_other.sum(), 0.9 * (kind == types.POISONED).sum())
      want = np.where(kind == types.POISONED, target, clean.labels)
      np.testing.assert_array_equal(feed.labels[i], want)

  def test_everything_is_built_once(self):
    self.assertIs(toy.victims(), toy.victims())
    self.assertIs(toy.clean_model(), toy.clean_model())
