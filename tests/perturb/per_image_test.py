"""Signed descent: its ball, its steps by hand, what stands still."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb

ORDER = {'linf': np.inf, 'l2': 2, 'l1': 1}
SHAPE = (3, 2, 2, 3)


def target():
  return jax.random.uniform(jax.random.key(0), SHAPE, minval=-1, maxval=1)


def quadratic(deltas):
  """½‖deltas − target‖², gradient deltas − target."""
  return 0.5 * jnp.sum((deltas - target()) ** 2)


def descend(deltas=None, loss_fn=quadratic, **options):
  base = dict(step_size=0.1, eps=1.0, norm='linf', num_steps=3)
  start = jnp.zeros(SHAPE) if deltas is None else deltas
  return perturb.sign_descent(loss_fn, start, **base | options)


def lengths(deltas, norm):
  flat = np.asarray(deltas, np.float64).reshape(len(deltas), -1)
  return np.linalg.norm(flat, ORDER[norm], axis=1)


class SignDescentTest(parameterized.TestCase):
  def test_one_step_by_hand(self):
    got = descend(num_steps=1)
    np.testing.assert_allclose(got, 0.1 * np.sign(target()), rtol=1e-6)

  @parameterized.parameters('linf', 'l2', 'l1')
  def test_every_image_stays_in_its_own_ball(self, norm):
    # The last image has a third of the others' pull and may not be scaled too.
    weights = jnp.asarray([1.0, 1.0, 0.0])[:, None, None, None]
    loss = lambda d: jnp.sum(weights * (d - target()) ** 2)
    start = jnp.full(SHAPE, 0.01)
    got = descend(start, loss, norm=norm, eps=0.25, num_steps=9)
    self.assertLessEqual(lengths(got, norm).max(), 0.25 * (1 + 1e-6))
    np.testing.assert_allclose(lengths(got, norm)[:2], 0.25, rtol=1e-5)
    np.testing.assert_array_equal(got[2], start[2])

  def test_stays_in_the_unit_interval_of_its_image(self):
    images = jnp.asarray([0.0, 0.5, 1.0])[:, None, None, None]
    images = images * jnp.ones(SHAPE)
    got = images + descend(images=images, eps=0.4, num_steps=9)
    self.assertBetween(float(got.min()), 0, 1)
    self.assertBetween(float(got.max()), 0, 1)
    # Where the pull turns back inside, an image at the edge comes along.
    turning = lambda d: jnp.sum((images + d - 0.95) ** 2)
    start = jnp.full(SHAPE, 0.4)
    back = images + descend(start, turning, images=images, num_steps=4, eps=0.9)
    np.testing.assert_allclose(back[1], 0.95, atol=0.1)

  def test_image_without_gradient_stays(self):
    start = jnp.full(SHAPE, 0.3)
    got = descend(start, lambda d: jnp.sum(d[:1]), num_steps=2)
    np.testing.assert_array_equal(got[1:], start[1:])
    np.testing.assert_allclose(got[0], 0.1, rtol=1e-5)

  def test_size_of_the_loss_is_immaterial(self):
    scaled = descend(loss_fn=lambda d: 1e3 * quadratic(d))
    np.testing.assert_array_equal(scaled, descend())

  def test_no_norm_is_no_ball(self):
    got = descend(loss_fn=jnp.sum, norm=None, eps=0.01, num_steps=5)
    np.testing.assert_allclose(got, -0.5, rtol=1e-5)

  def test_steps_are_single_calls(self):
    once = jnp.zeros(SHAPE)
    for _ in range(4):
      once = descend(once, norm='l2', eps=0.3, num_steps=1)
    got = descend(norm='l2', eps=0.3, num_steps=4)
    np.testing.assert_allclose(got, once, rtol=1e-6)

  def test_floats_may_be_traced(self):
    run = lambda size, eps: descend(step_size=size, eps=eps)
    sizes, radii = jnp.array([0.1, 0.2]), jnp.array([0.15, 0.5])
    got = jax.jit(jax.vmap(run))(sizes, radii)
    for i in range(2):
      want = run(float(sizes[i]), float(radii[i]))
      np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-7)

  @parameterized.parameters(
    (dict(num_steps=0), '`num_steps=0` must be positive'),
    (dict(step_size=-0.1), '`step_size=-0.1` must not be negative'),
    (dict(eps=-1.0), '`eps=-1.0` must not be negative'),
    (dict(eps=8.0), '8/255'),
    (dict(norm='l3'), "norm='l3'"),
  )
  def test_bad_values(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      descend(**options)


class ProjectEachTest(parameterized.TestCase):
  def test_norms_are_per_image(self):
    deltas = jnp.stack([jnp.full((2, 2, 1), 1.0), jnp.full((2, 2, 1), 0.1)])
    got = perturb.project_each(deltas, 0.5, 'l2')
    np.testing.assert_allclose(lengths(got, 'l2'), [0.5, 0.2], rtol=1e-5)
    np.testing.assert_array_equal(got[1], deltas[1])
