"""The weight of the shortest combination: closed forms and a grid search."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import optim


def weight(first, second):
  return float(optim.min_norm_weight(jnp.asarray(first), jnp.asarray(second)))


class MinNormTest(parameterized.TestCase):
  def test_orthogonal_unit_vectors_share(self):
    self.assertAlmostEqual(weight([1.0, 0.0], [0.0, 1.0]), 0.5, places=6)

  def test_identical_vectors_give_the_boundary(self):
    self.assertAlmostEqual(weight([1.0, 2.0], [1.0, 2.0]), 0.999, places=6)

  def test_of_parallel_vectors_the_shorter_one_counts(self):
    short, long = np.asarray([1.0, 2.0]), np.asarray([2.0, 4.0])
    self.assertAlmostEqual(weight(short, long), 0.999, places=6)
    self.assertAlmostEqual(weight(long, short), 0.001, places=6)

  def test_zeros_give_the_boundary(self):
    self.assertAlmostEqual(weight([0.0], [0.0]), 0.999, places=6)

  @parameterized.product(seed=(0, 1, 2, 3, 4, 5))
  def test_equals_a_search_on_a_grid(self, seed):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(2, 5)) + rng.uniform(size=(2, 1))
    grid = np.linspace(0.001, 0.999, 999)
    mixed = grid[:, None] * one + (1 - grid[:, None]) * two
    want = grid[np.argmin(np.sum(mixed**2, -1))]
    self.assertAlmostEqual(weight(one, two), want, delta=1e-3)

  def test_counts_all_leaves(self):
    one = {'a': jnp.asarray([1.0]), 'b': jnp.asarray([0.0])}
    two = {'a': jnp.asarray([0.0]), 'b': jnp.asarray([2.0])}
    # c / (a + c) with a = 1 and c = 4.
    got = float(optim.min_norm_weight(one, two))
    self.assertAlmostEqual(got, 0.8, places=6)


if __name__ == '__main__':
  absltest.main()
