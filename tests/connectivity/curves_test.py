"""Curves: weights, ends, the slopes that a Bezier curve has there."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import connectivity

START, MIDDLE, END = ({'w': jnp.asarray(v)} for v in (1.0, 5.0, 2.0))


def at(t, curve='bezier'):
  return connectivity.curve_point(START, MIDDLE, END, t, curve)['w']


class CurvesTest(parameterized.TestCase):
  @parameterized.product(curve=connectivity.CURVES, t=(0.0, 0.1, 0.5, 0.7, 1.0))
  def test_weights_add_up_to_one(self, curve, t):
    weights = connectivity.curve_weights(t, curve)
    np.testing.assert_allclose(jnp.sum(weights), 1, rtol=1e-6)
    self.assertGreaterEqual(float(weights.min()), 0)

  @parameterized.parameters(*connectivity.CURVES)
  def test_ends_are_exact(self, curve):
    for t, want in ((0.0, START), (1.0, END)):
      got = connectivity.curve_point(START, MIDDLE, END, t, curve)
      chex.assert_trees_all_equal(got, want)

  def test_values(self):
    np.testing.assert_allclose(at(0.25), 9 / 16 + 5 * 6 / 16 + 2 / 16)
    np.testing.assert_allclose(at(0.25, 'chain'), 3.0)
    np.testing.assert_allclose(at(0.5, 'chain'), 5.0)
    np.testing.assert_allclose(at(0.75, 'chain'), 3.5)

  def test_bezier_leaves_its_ends_toward_the_middle(self):
    slope = jax.grad(at)
    np.testing.assert_allclose(slope(0.0), 2 * (5 - 1), rtol=1e-5)
    np.testing.assert_allclose(slope(1.0), 2 * (2 - 5), rtol=1e-5)

  @parameterized.parameters(
    (dict(curve='line'), 'curve='), (dict(t=1.5), r'`t=1.5` is not in \[0, 1\]')
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      connectivity.curve_weights(**{'t': 0.5, **values})
