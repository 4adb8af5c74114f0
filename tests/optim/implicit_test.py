"""Hypergradients against closed forms, a linear solve and torch's numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import optim
from tests.reference import golden


def scalar(a, b, c, theta, alpha, delta, num_steps):
  """g = ½aδ² − bθδ, F = ½(δ − c)²."""
  return optim.hypergradient(
    lambda d, t: d - alpha * (a * d - b * t),
    lambda d, t: 0.5 * (d - c) ** 2,
    delta,
    theta,
    num_steps=num_steps,
  )[0]


class ScalarTest(parameterized.TestCase):
  @parameterized.product(num_steps=(1, 2, 5, 40))
  def test_truncated_series(self, num_steps):
    a, b, c, theta, alpha = 2.0, 3.0, 0.5, 0.7, 0.1
    star = b * theta / a
    got = scalar(a, b, c, theta, alpha, star, num_steps)
    want = (star - c) * b / a * (1 - (1 - alpha * a) ** num_steps)
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.product(num_steps=(1, 2, 5, 20, 100))
  def test_golden(self, num_steps):
    arrays = golden.arrays('i_bau', 'scalar/')
    with jax.enable_x64(True):
      a, b, c, theta, alpha = arrays['abc_theta_alpha']
      for place, delta in (('at', b * theta / a), ('off', 0.2)):
        got = scalar(a, b, c, theta, alpha, delta, num_steps)
        want = arrays[f'{place}_optimum_K{num_steps}']
        np.testing.assert_allclose(np.float64(got), want, rtol=1e-12)

  def test_direct_part_is_kept(self):
    grad, info = optim.hypergradient(
      lambda d, t: 0.5 * d,  # no theta in the map
      lambda d, t: d * t + t**2,
      2.0,
      3.0,
      num_steps=3,
    )
    self.assertEqual(float(grad), 8.0)
    self.assertEqual(float(info['loss']), 15.0)
    # Terms 3, 1.5, 0.75 of the series: the last one is the residual.
    self.assertEqual(float(info['residual']), 0.75)

  def test_rejects_no_steps(self):
    with self.assertRaisesRegex(ValueError, '`num_steps=0` must be positive'):
      scalar(1.0, 1.0, 1.0, 1.0, 0.1, 0.0, 0)


class QuadraticTest(parameterized.TestCase):
  def problem(self):
    """g = ½δᵀAδ − δᵀBθ with δ of two leaves, F = ½‖δ − c‖² + dᵀθ."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    a = root @ root.T / 5 + np.eye(5)
    return a, rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=3)

  def test_many_steps_are_the_exact_linear_solve(self):
    a, b, c, d = self.problem()
    theta = np.array([0.3, -1.0, 0.5])
    star = np.linalg.solve(a, b @ theta)
    with jax.enable_x64(True):
      flat = lambda delta: jnp.concatenate([delta['x'], delta['y']])
      split = lambda v: {'x': v[:2], 'y': v[2:]}
      grad, info = jax.jit(
        lambda delta, theta: optim.hypergradient(
          lambda s, t: split(flat(s) - 0.2 * (a @ flat(s) - b @ t)),
          lambda s, t: 0.5 * jnp.sum((flat(s) - c) ** 2) + d @ t,
          delta,
          theta,
          num_steps=400,
        )
      )(split(jnp.asarray(star)), jnp.asarray(theta))
    want = b.T @ np.linalg.solve(a, star - c) + d
    np.testing.assert_allclose(np.float64(grad), want, rtol=1e-9)
    self.assertLess(float(info['residual']), 1e-9)

  def test_lifts_over_a_stack(self):
    a, b, c, _ = (x.astype(np.float32) for x in self.problem())
    thetas = jnp.asarray(np.eye(3), jnp.float32)

    def run(theta):
      return optim.hypergradient(
        lambda s, t: s - 0.2 * (a @ s - b @ t),
        lambda s, t: 0.5 * jnp.sum((s - c) ** 2),
        jnp.zeros(5),
        theta,
        num_steps=4,
      )[0]

    each = jnp.stack([run(theta) for theta in thetas])
    np.testing.assert_allclose(jax.vmap(run)(thetas), each, rtol=1e-4)


class NetworkTest(parameterized.TestCase):
  """A two-layer tanh network; its map is no contraction."""

  @parameterized.product(num_steps=(1, 2, 5, 20))
  def test_golden(self, num_steps):
    g = golden.arrays('i_bau', 'toy/')

    def cross_entropy(p, x, y):
      hidden = jnp.tanh(x @ p['W1'] + p['b1'][None])
      log_p = jax.nn.log_softmax(hidden @ p['W2'] + p['b2'][None])
      return -jnp.mean(jnp.take_along_axis(log_p, y[:, None], 1))

    def inner(delta, p):
      value = cross_entropy(p, g['x0'] + delta, g['y0'])
      return 0.001 * jnp.sum(delta**2) - value

    def outer(delta, p):
      rows = np.isin(np.arange(len(g['x1'])), g['rand_idx'])[:, None]
      return cross_entropy(p, g['x1'] + rows * delta, g['y1'])

    with jax.enable_x64(True):
      params = {k: jnp.asarray(g[k]) for k in ('W1', 'b1', 'W2', 'b2')}
      delta = jnp.asarray(g['delta'])
      grad, info = jax.jit(
        lambda delta, params: optim.hypergradient(
          lambda d, p: d - 0.1 * jax.grad(inner)(d, p),
          outer,
          delta,
          params,
          num_steps=num_steps,
        )
      )(delta, params)
    np.testing.assert_allclose(info['loss'], g['outer_loss'], rtol=1e-12)
    for name, value in grad.items():
      want = g[f'hypergrad_K{num_steps}/{name}']
      np.testing.assert_allclose(np.asarray(value), want, rtol=1e-8, atol=1e-12)
