"""The head: out and in again, fresh weights, what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import surgery
from tests import small_nets

HEAD = {'kernel': jnp.arange(6.0).reshape(3, 2), 'bias': jnp.ones(2)}
PARAMS = {'stem': jnp.ones(4), 'top': {'norm': jnp.zeros(2), 'head': HEAD}}


def net():
  linear = small_nets.linear_net()
  return linear._replace(
    info=linear.info.__class__(
      **{**vars(linear.info), 'head_path': ('top', 'head')}
    )
  )


class HeadTest(parameterized.TestCase):
  def test_out_and_in_again(self):
    head, body = surgery.split_head(net(), PARAMS)
    chex.assert_trees_all_equal(head, HEAD)
    self.assertEqual(set(body['top']), {'norm'})
    self.assertIn('head', PARAMS['top'])  # what was given stays
    chex.assert_trees_all_equal(surgery.join_head(net(), head, body), PARAMS)

  def test_kernel_is_the_matrix(self):
    np.testing.assert_array_equal(surgery.head_kernel(HEAD), HEAD['kernel'])
    bare = jnp.ones((3, 2))
    np.testing.assert_array_equal(surgery.head_kernel(bare), bare)

  @parameterized.parameters(
    ({'bias': jnp.ones(2)}, 'has 0'),
    ({'a': jnp.ones((1, 1)), 'b': jnp.ones((1, 1))}, 'has 2'),
  )
  def test_no_linear_head(self, head, message):
    with self.assertRaisesRegex(ValueError, message):
      surgery.head_kernel(head)

  def test_fresh_head_is_uniform_in_its_bound(self):
    head = {'kernel': jnp.zeros((400, 20)), 'bias': jnp.zeros(20)}
    fresh = surgery.random_head(jax.random.key(0), head)
    chex.assert_trees_all_equal_shapes_and_dtypes(fresh, head)
    quarters, _ = np.histogram(fresh['kernel'], bins=4, range=(-0.05, 0.05))
    np.testing.assert_allclose(quarters / 8000, 0.25, atol=0.02)
    self.assertBetween(float(jnp.abs(fresh['bias']).max()), 0.03, 0.05)

  def test_keys(self):
    one, same, other = (
      surgery.random_head(jax.random.key(seed), HEAD) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, same)
    self.assertFalse(np.array_equal(one['kernel'], other['kernel']))
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      surgery.random_head(jnp.zeros(2, jnp.uint32), HEAD)

  def test_scaling_leaves_the_bias(self):
    scaled = surgery.scale_kernel(HEAD, 2.0)
    np.testing.assert_array_equal(scaled['kernel'], 2 * HEAD['kernel'])
    np.testing.assert_array_equal(scaled['bias'], HEAD['bias'])
