"""Tests of the projections (existence_and_reactivation.md E.1, no. 12)."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bdjax import perturb

_ORDER = {'linf': np.inf, 'l2': 2, 'l1': 1}
# On a grid, so that no product of ours falls among the subnormal numbers.
_DELTAS = hnp.arrays(
  np.int16, (3, 2, 2), elements=st.integers(-2000, 2000)
).map(lambda thousandths: np.float32(thousandths) / np.float32(1000))
_EPS = st.floats(2.0**-10, 1.0, width=32)
_project = jax.jit(perturb.project, static_argnames='norm')
_project_l1_exact = jax.jit(perturb.project_l1_exact)
_FUNCTIONS = {
  'linf': functools.partial(_project, norm='linf'),
  'l2': functools.partial(_project, norm='l2'),
  'l1': functools.partial(_project, norm='l1'),
  'l1_exact': _project_l1_exact,
}
_settings = hypothesis.settings(
  max_examples=40, deadline=None, derandomize=True, database=None
)


def _length(delta, name):
  order = _ORDER[name.removesuffix('_exact')]
  return np.linalg.norm(np.asarray(delta, np.float64).ravel(), order)


def _nearest_l1(delta, eps):
  """The naive twin: bisection on the threshold."""
  size = np.abs(np.asarray(delta, np.float64))
  if size.sum() <= eps:
    return np.asarray(delta, np.float64)
  low, high = 0.0, size.max()
  for _ in range(100):
    middle = (low + high) / 2
    over = np.maximum(size - middle, 0).sum() > eps
    low, high = (middle, high) if over else (low, middle)
  return np.sign(delta) * np.maximum(size - high, 0)


class ProjectionsTest(parameterized.TestCase):
  @parameterized.parameters(*_FUNCTIONS)
  def test_row12_inside_the_ball_and_idempotent(self, name):
    @_settings
    @hypothesis.given(delta=_DELTAS, eps=_EPS)
    def check(delta, eps):
      once = _FUNCTIONS[name](delta, eps)
      self.assertLessEqual(_length(once, name), eps * (1 + 1e-6))
      np.testing.assert_allclose(
        _FUNCTIONS[name](once, eps), once, rtol=1e-6, atol=1e-6 * eps
      )

    check()

  @parameterized.parameters(*_FUNCTIONS)
  def test_row12_unchanged_inside_the_ball(self, name):
    @_settings
    @hypothesis.given(delta=_DELTAS, eps=_EPS, slack=st.floats(1.0625, 4))
    def check(delta, eps, slack):
      shrink = min(1.0, eps / (slack * _length(delta, name) + 1e-12))
      delta = delta * np.float32(shrink)
      np.testing.assert_array_equal(_FUNCTIONS[name](delta, eps), delta)

    check()

  @parameterized.parameters('l2', 'l1')
  def test_row12_direction_is_kept(self, norm):
    @_settings
    @hypothesis.given(delta=_DELTAS, eps=_EPS)
    def check(delta, eps):
      hypothesis.assume(_length(delta, norm) > eps)
      expected = delta * (eps / _length(delta, norm))
      np.testing.assert_allclose(
        _FUNCTIONS[norm](delta, eps), expected, rtol=1e-5, atol=1e-30
      )

    check()

  def test_exact_l1_is_the_nearest_point(self):
    @_settings
    @hypothesis.given(delta=_DELTAS, eps=_EPS)
    def check(delta, eps):
      np.testing.assert_allclose(
        _project_l1_exact(delta, eps), _nearest_l1(delta, eps), atol=2e-6
      )

    check()

  def test_hand_computed(self):
    delta = jnp.array([0.6, -0.8, 0.0])
    for norm, expected in (
      ('linf', [0.5, -0.5, 0.0]),
      ('l2', [0.3, -0.4, 0.0]),
      ('l1', [3 / 14, -4 / 14, 0.0]),
    ):
      np.testing.assert_allclose(
        perturb.project(delta, 0.5, norm), expected, rtol=1e-6
      )
    # The threshold is (1.4 − 0.5) / 2; then a radius at which one entry goes.
    np.testing.assert_allclose(
      perturb.project_l1_exact(delta, 0.5), [0.15, -0.35, 0.0], rtol=1e-5
    )
    np.testing.assert_allclose(
      perturb.project_l1_exact(delta, 0.1), [0.0, -0.1, 0.0], atol=1e-6
    )

  def test_exact_l1_at_image_size(self):
    delta = np.random.default_rng(0).normal(size=(64, 64, 3))
    got = perturb.project_l1_exact(jnp.float32(delta), 30.0)
    np.testing.assert_allclose(_length(got, 'l1'), 30.0, rtol=1e-4)
    np.testing.assert_allclose(got, _nearest_l1(delta, 30.0), atol=1e-5)

  @parameterized.parameters(*_FUNCTIONS)
  def test_radius_zero_and_perturbation_zero(self, name):
    delta = jnp.array([0.3, -0.2])
    for value, eps in ((delta, 0.0), (0 * delta, 0.0), (0 * delta, 0.1)):
      np.testing.assert_array_equal(_FUNCTIONS[name](value, eps), 0 * delta)

  @parameterized.parameters('linf', 'l2', 'l1')
  def test_vmap_over_radii(self, norm):
    delta = jnp.array([0.6, -0.8])
    radii = jnp.array([0.1, 0.5, 1.0])
    got = jax.vmap(lambda eps: perturb.project(delta, eps, norm))(radii)
    for i, eps in enumerate(radii):
      np.testing.assert_allclose(
        got[i], perturb.project(delta, float(eps), norm), rtol=1e-6
      )

  def test_bad_arguments(self):
    delta = jnp.zeros(2)
    with self.assertRaisesRegex(ValueError, "Did you mean 'linf'"):
      perturb.project(delta, 0.1, 'inf')
    with self.assertRaisesRegex(ValueError, 'write 8/255'):
      perturb.project(delta, 8, 'linf')
    for function in (
      lambda: perturb.project(delta, -0.1, 'l2'),
      lambda: perturb.project_l1_exact(delta, -0.1),
    ):
      with self.assertRaisesRegex(ValueError, 'eps=-0.1'):
        function()
