"""The toy world is what other tests take it for."""

import jax
import numpy as np
from absl.testing import parameterized

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

  def test_everything_is_built_once(self):
    self.assertIs(toy.victims(), toy.victims())
    self.assertIs(toy.clean_model(), toy.clean_model())
