"""Tests of the displacement: length, direction, degenerate cases, gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import optim, tree


def _trees():
  params = {'a': jnp.array([[1.0, -2.0], [0.5, 0.3]]), 'b': jnp.array([0.7])}
  anchor = {'a': jnp.array([[0.0, -1.5], [2.5, 0.3]]), 'b': jnp.array([-0.1])}
  return params, anchor


class DisplacementTest(parameterized.TestCase):
  @parameterized.parameters(0.01, 0.5, 10.0)
  def test_row19_length_over_all_leaves_is_rho(self, rho):
    e = optim.displacement(*_trees(), rho)
    np.testing.assert_allclose(tree.norm(e), rho, rtol=1e-5)

  def test_direction_is_that_of_the_anchor(self):
    params, anchor = _trees()
    e = optim.displacement(params, anchor, 0.3)
    towards = tree.subtract(anchor, params)
    np.testing.assert_allclose(tree.cosine(e, towards), 1.0, rtol=1e-6)

  def test_hand_computed(self):
    """Differences (2, −1) and 2: the norm is 3, over both leaves."""
    params = {'a': jnp.array([1.0, 1.0]), 'b': jnp.array(-2.0)}
    anchor = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array(0.0)}
    e = optim.displacement(params, anchor, 1.5)
    np.testing.assert_allclose(e['a'], [1.0, -0.5], rtol=1e-6)
    np.testing.assert_allclose(e['b'], 1.0, rtol=1e-6)

  @parameterized.product(is_capped=(False, True))
  def test_is_zero_at_the_anchor(self, is_capped):
    params, _ = _trees()
    e = optim.displacement(params, params, 0.5, is_capped=is_capped)
    for leaf in jax.tree.leaves(e):
      np.testing.assert_array_equal(leaf, np.zeros_like(leaf))

  def test_zero_rho_is_zero(self):
    for leaf in jax.tree.leaves(optim.displacement(*_trees(), 0.0)):
      np.testing.assert_array_equal(leaf, np.zeros_like(leaf))

  @parameterized.parameters((0.2, 0.2), (0.5, 0.5), (0.9, 0.5))
  def test_cap_ends_at_the_anchor(self, rho, length):
    params, anchor = {'w': jnp.zeros(2)}, {'w': jnp.array([0.3, 0.4])}
    e = optim.displacement(params, anchor, rho, is_capped=True)['w']
    np.testing.assert_allclose(e, [0.6 * length, 0.8 * length], rtol=1e-5)
    free = optim.displacement(params, anchor, rho)['w']
    np.testing.assert_allclose(free, [0.6 * rho, 0.8 * rho], rtol=1e-5)

  @parameterized.product(is_capped=(False, True), at_anchor=(False, True))
  def test_row19_no_gradient_passes(self, is_capped, at_anchor):
    params, anchor = _trees()
    start = anchor if at_anchor else params

    def total(p, anchor, rho):
      e = optim.displacement(p, anchor, rho, is_capped=is_capped)
      return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(e))

    grads = jax.grad(total, (0, 1, 2))(start, anchor, 5.0)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, np.zeros_like(leaf))

  def test_length_may_be_mapped_over(self):
    rhos = jnp.array([0.0, 0.5, 2.0])
    lengths = jax.vmap(
      lambda rho: tree.norm(optim.displacement(*_trees(), rho))
    )(rhos)
    np.testing.assert_allclose(lengths, rhos, rtol=1e-5)

  def test_negative_length(self):
    with self.assertRaisesRegex(ValueError, '`rho=-0.1` must not be negative'):
      optim.displacement(*_trees(), -0.1)
