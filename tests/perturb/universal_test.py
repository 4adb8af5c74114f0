"""Tests of the random start and of the descent on one batch."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb

_ORDER = {'linf': np.inf, 'l2': 2, 'l1': 1}
_SHAPE = (4, 4, 3)


def _length(delta, norm):
  return np.linalg.norm(np.asarray(delta, np.float64).ravel(), _ORDER[norm])


class InitUniformTest(parameterized.TestCase):
  @parameterized.parameters(('linf', 0.05), ('l2', 0.1), ('l1', 0.5))
  def test_inside_the_ball(self, norm, eps):
    delta = perturb.init_uniform(jax.random.key(0), _SHAPE, eps, norm)
    self.assertEqual((delta.shape, delta.dtype), (_SHAPE, jnp.float32))
    self.assertLessEqual(_length(delta, norm), eps * (1 + 1e-6))
    self.assertGreater(_length(delta, norm), 0.9 * eps)

  def test_linf_is_uniform(self):
    eps = 0.2
    delta = perturb.init_uniform(jax.random.key(1), (64, 64, 3), eps, 'linf')
    quarters, _ = np.histogram(delta, bins=4, range=(-eps, eps))
    np.testing.assert_allclose(quarters / delta.size, 0.25, atol=0.02)

  def test_radial_norms_scale_the_uniform_draw(self):
    args = (jax.random.key(0), _SHAPE, 0.5)
    uniform = perturb.init_uniform(*args, 'linf')
    np.testing.assert_allclose(
      perturb.init_uniform(*args, 'l1'),
      uniform * (0.5 / _length(uniform, 'l1')),
      rtol=1e-5,
    )

  def test_keys(self):
    draw = lambda seed: perturb.init_uniform(
      jax.random.key(seed), _SHAPE, 0.1, 'linf'
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertFalse(np.array_equal(draw(0), draw(1)))
    with self.assertRaisesRegex(TypeError, r'jax.random.key\(seed\)'):
      perturb.init_uniform(jnp.zeros(2, jnp.uint32), _SHAPE, 0.1, 'linf')

  def test_traced_radius(self):
    draw = lambda eps: perturb.init_uniform(
      jax.random.key(0), _SHAPE, eps, 'linf'
    )
    got = jax.vmap(draw)(jnp.array([0.0, 0.1]))
    np.testing.assert_array_equal(got[0], np.zeros(_SHAPE))
    np.testing.assert_allclose(got[1], draw(0.1), rtol=1e-6)

  def test_bad_radius(self):
    with self.assertRaisesRegex(ValueError, '12/255'):
      perturb.init_uniform(jax.random.key(0), _SHAPE, 12, 'linf')


_TARGET = jnp.linspace(-0.4, 0.8, 12).reshape(2, 2, 3)


def _quadratic(delta):
  """½‖delta − target‖², gradient delta − target."""
  loss = 0.5 * jnp.sum((delta - _TARGET) ** 2)
  return loss, {'loss': loss, 'delta': delta}


class UniversalDescentTest(parameterized.TestCase):
  def _descend(self, delta, **options):
    defaults = dict(lr=0.1, eps=1.0, norm='linf', num_inner=3)
    return perturb.universal_descent(_quadratic, delta, **defaults | options)

  @parameterized.parameters(1, 3, 7)
  def test_free_descent_on_a_quadratic(self, n):
    """delta − target shrinks by (1 − lr) a step: no sign, no momentum."""
    delta, _ = self._descend(jnp.zeros((2, 2, 3)), num_inner=n)
    np.testing.assert_allclose(
      delta, _TARGET * (1 - 0.9**n), rtol=1e-5, atol=1e-7
    )

  def test_converges_to_the_projected_minimum(self):
    delta, _ = self._descend(jnp.zeros((2, 2, 3)), eps=0.3, num_inner=200)
    np.testing.assert_allclose(delta, np.clip(_TARGET, -0.3, 0.3), atol=1e-5)

  @parameterized.parameters('linf', 'l2', 'l1')
  def test_stays_inside_the_ball(self, norm):
    delta, _ = self._descend(
      jnp.zeros((2, 2, 3)), norm=norm, eps=0.25, num_inner=20
    )
    np.testing.assert_allclose(_length(delta, norm), 0.25, rtol=1e-5)

  @parameterized.parameters('linf', 'l2', 'l1')
  def test_equals_the_steps_written_out(self, norm):
    start = perturb.init_uniform(jax.random.key(0), (2, 2, 3), 0.3, norm)
    expected = start
    for _ in range(4):
      expected = perturb.project(
        expected - 0.5 * (expected - _TARGET), 0.3, norm
      )
    got, _ = self._descend(start, lr=0.5, eps=0.3, norm=norm, num_inner=4)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)

  def test_aux_is_that_of_the_first_step(self):
    start = jnp.full((2, 2, 3), 0.1)
    _, aux = self._descend(start)
    np.testing.assert_array_equal(aux['delta'], start)
    np.testing.assert_allclose(aux['loss'], _quadratic(start)[0], rtol=1e-6)

  def test_inner_steps_are_single_calls(self):
    start = jnp.full((2, 2, 3), 0.1)
    once = start
    for _ in range(3):
      once, _ = self._descend(once, num_inner=1, eps=0.2, norm='l2')
    got, _ = self._descend(start, num_inner=3, eps=0.2, norm='l2')
    np.testing.assert_allclose(got, once, rtol=1e-6)

  def test_floats_may_be_traced(self):
    run = lambda lr, eps: self._descend(jnp.zeros((2, 2, 3)), lr=lr, eps=eps)[0]
    lrs, radii = jnp.array([0.1, 0.3]), jnp.array([0.05, 1.0])
    got = jax.jit(jax.vmap(run))(lrs, radii)
    for i in range(2):
      np.testing.assert_allclose(
        got[i], run(float(lrs[i]), float(radii[i])), rtol=1e-5, atol=1e-7
      )

  def test_bad_arguments(self):
    delta = jnp.zeros((2, 2, 3))
    for options, message in (
      (dict(num_inner=0), 'num_inner=0'),
      (dict(lr=-0.1), 'lr=-0.1'),
      (dict(eps=8.0), '8/255'),
      (dict(norm='l3'), 'norm='),
    ):
      with self.assertRaisesRegex(ValueError, message):
        self._descend(delta, **options)
