"""The anomaly index by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import eval

NORMS = np.array([1.0, 9.0, 10.0, 11.0, 12.0])


class AnomalyTest(parameterized.TestCase):
  def test_index_by_hand(self):
    want = np.array([9, 1, 0, 1, 2]) / 1.4826
    np.testing.assert_allclose(eval.anomaly_index(NORMS), want, rtol=1e-6)
    index = eval.smallest_index(NORMS)
    np.testing.assert_allclose(index, 9 / 1.4826, rtol=1e-6)

  def test_flags_small_outliers_only(self):
    np.testing.assert_array_equal(eval.flag_small(NORMS), [1, 0, 0, 0, 0])
    large = 20 - NORMS  # 19 is as far from the median as 1 was
    self.assertFalse(bool(jnp.any(eval.flag_small(large))))
    self.assertFalse(bool(jnp.any(eval.flag_small(NORMS, 6.1))))

  def test_no_spread(self):
    np.testing.assert_array_equal(eval.anomaly_index(np.ones(6)), np.zeros(6))
    index = eval.anomaly_index(np.array([0.5, 1, 1, 1, 1, 1]))
    np.testing.assert_allclose(index[0], 0.5 / 1e-6, rtol=1e-5)

  def test_stacks(self):
    stack = np.stack([NORMS, NORMS[::-1]])
    each = np.stack([eval.anomaly_index(x) for x in stack])
    np.testing.assert_array_equal(jax.jit(eval.anomaly_index)(stack), each)
    np.testing.assert_array_equal(
      eval.flag_small(stack), np.stack([eval.flag_small(x) for x in stack])
    )

  def test_few_classes(self):
    self.assertTrue(eval.is_few(4))
    self.assertFalse(eval.is_few(5))
