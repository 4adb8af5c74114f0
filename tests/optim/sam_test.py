"""Tests of SAM: closed forms on quadratics, optax's own, degenerate cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import optim, tree, types


def _clock(step=0):
  return types.Clock(jax.random.key(0), jnp.int32(step), jnp.int32(0), 10, 1)


def _params():
  return {
    'a': jnp.array([[1.0, -2.0], [0.5, 0.3]]),
    'b': jnp.array([0.7, -0.1]),
  }


def _loss(params, i=0):
  """Smooth, not quadratic, and coupling both leaves."""
  del i
  y = jnp.tanh(params['a'] @ params['b']) + 0.3 * jnp.sin(params['a'][0])
  return jnp.sum((y - jnp.array([1.0, 2.0])) ** 2)


_grad_fn = jax.grad(_loss)


def _run(tx, steps=3, params=None):
  params = _params() if params is None else params
  state = tx.init(params)
  for k in range(steps):
    updates, state = tx.update(
      _grad_fn(params, 0), state, params, grad_fn=_grad_fn, clock=_clock(k)
    )
    params = optax.apply_updates(params, updates)
  return params


def _perturbation(params, grads, rho, **options):
  """+ε, the negated update."""
  tx = optim.asam_perturbation(rho, **options)
  updates, _ = tx.update(grads, tx.init(params), params)
  return tree.scale(-1.0, updates)


def _assert_close(a, b, **tolerance):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, **tolerance)


class AsamPerturbationTest(parameterized.TestCase):
  @parameterized.parameters(0.05, 2.0, 8.0)
  def test_relative_norm_is_rho(self, rho):
    params = _params()
    eps = _perturbation(params, _grad_fn(params, 0), rho)
    relative = jax.tree.map(lambda e, w: e / jnp.abs(w), eps, params)
    np.testing.assert_allclose(tree.norm(relative), rho, rtol=1e-5)

  def test_plain_norm_is_rho(self):
    params = _params()
    eps = _perturbation(params, _grad_fn(params, 0), 0.3, adaptive=False)
    np.testing.assert_allclose(tree.norm(eps), 0.3, rtol=1e-6)
    cosine = tree.cosine(eps, _grad_fn(params, 0))
    np.testing.assert_allclose(cosine, 1.0, rtol=1e-6)

  def test_hand_computed(self):
    """w·g = (2, −2) and 1: the norm is 3, over both leaves."""
    params = {'a': jnp.array([2.0, -1.0]), 'b': jnp.array(0.5)}
    grads = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array(2.0)}
    eps = _perturbation(params, grads, 6.0)
    np.testing.assert_allclose(eps['a'], [8.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(eps['b'], 1.0, rtol=1e-6)

  @parameterized.parameters(True, False)
  def test_zero_gradient_gives_zero(self, adaptive):
    params = _params()
    zero = jax.tree.map(jnp.zeros_like, params)
    eps = _perturbation(params, zero, 2.0, adaptive=adaptive)
    _assert_close(eps, zero, rtol=0, atol=0)

  def test_pruned_weights_stay_zero(self):
    params = {'w': jnp.array([0.0, 1.0, 2.0])}
    eps = _perturbation(params, {'w': jnp.array([5.0, 1.0, 1.0])}, 2.0)
    self.assertEqual(eps['w'][0], 0)
    self.assertNotEqual(eps['w'][1], 0)

  def test_scale_invariance(self):
    """Scaling one layer by c and the next by 1/c scales ε alike."""
    c = 4.0
    scaled = lambda p: {'a': c * p['a'], 'b': p['b'] / c}
    loss = lambda p: jnp.sum((jax.nn.relu(p['a'] @ jnp.ones(2)) @ p['b']) ** 2)
    params = {
      'a': jnp.array([[1.0, 0.5], [0.2, 0.7]]),
      'b': jnp.array([1.0, 2]),
    }
    eps, eps_scaled = (
      _perturbation(p, jax.grad(loss)(p), 0.5) for p in (params, scaled(params))
    )
    _assert_close(eps_scaled, scaled(eps), rtol=1e-5)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'rho=-1'):
      optim.asam_perturbation(-1)
    tx = optim.asam_perturbation(1.0)
    with self.assertRaisesRegex(ValueError, 'grads, state, params'):
      tx.update(_params(), tx.init(_params()))

  def test_plain_form_needs_no_weights(self):
    tx = optim.asam_perturbation(1.0, adaptive=False)
    updates, _ = tx.update({'w': jnp.array([3.0, 4.0])}, tx.init(None))
    np.testing.assert_allclose(updates['w'], [-0.6, -0.8], rtol=1e-6)


class SamTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_rho_zero_is_the_base(self, adaptive):
    base = optim.sgd(optim.cosine_steps(0.05, 5))
    got = _run(optim.sam(base, 0.0, adaptive=adaptive))
    _assert_close(got, _run(base), rtol=0, atol=0)

  def test_quadratic_step(self):
    """L = ½ Σ a w²: ε = ρ a w³ / ‖a w²‖, next w = w − lr·a·(w + ε)."""
    a = np.array([0.5, 2.0, 1.0, 3.0])
    w = np.array([1.0, -0.4, 2.0, 0.1])
    rho, lr = 0.7, 0.1
    grad_fn = lambda params, i: {'w': jnp.float32(a) * params['w']}
    base = optim.sgd(optim.constant(lr), momentum=0.0, weight_decay=0.0)
    tx = optim.sam(base, rho)
    params = {'w': jnp.float32(w)}
    updates, _ = tx.update(
      grad_fn(params, 0),
      tx.init(params),
      params,
      grad_fn=grad_fn,
      clock=_clock(),
    )
    eps = rho * a * w**3 / np.linalg.norm(a * w**2)
    np.testing.assert_allclose(
      optax.apply_updates(params, updates)['w'],
      w - lr * a * (w + eps),
      rtol=1e-6,
    )

  def test_plain_form_equals_optax(self):
    rho, lr = 0.3, 0.05
    theirs = optax.contrib.sam(
      optax.sgd(lr, momentum=0.9),
      optax.chain(optax.contrib.normalize(), optax.sgd(rho)),
      sync_period=2,
      opaque_mode=True,
    )
    ours = optim.sam(
      optim.sgd(optim.constant(lr), weight_decay=0.0), rho, adaptive=False
    )
    params = _params()
    state = theirs.init(params)
    for _ in range(3):
      updates, state = theirs.update(
        _grad_fn(params, 0), state, params, grad_fn=_grad_fn
      )
      params = optax.apply_updates(params, updates)
    _assert_close(_run(ours), params, rtol=1e-6, atol=1e-6)

  @parameterized.parameters(True, False)
  def test_equals_two_calls_written_out(self, adaptive):
    """Gradient, displacement, gradient, torch's SGD: decay and v at w."""
    rho, lr, mu, decay = 0.5, 0.05, 0.9, 0.1
    w = _params()
    v = jax.tree.map(jnp.zeros_like, w)
    for _ in range(3):
      g = _grad_fn(w, 0)
      t = w if adaptive else jax.tree.map(jnp.ones_like, w)
      length = np.sqrt(sum(np.sum((t[k] * g[k]) ** 2) for k in w))
      near = {k: w[k] + rho * t[k] ** 2 * g[k] / length for k in w}
      g = _grad_fn(near, 0)
      v = {k: mu * v[k] + g[k] + decay * w[k] for k in w}
      w = {k: w[k] - lr * v[k] for k in w}
    tx = optim.sam(
      optim.sgd(optim.constant(lr), momentum=mu, weight_decay=decay),
      rho,
      adaptive=adaptive,
    )
    _assert_close(_run(tx), w, rtol=1e-5)

  def test_weight_decay_acts_at_the_unperturbed_weights(self):
    """L = w: its gradient is 1 everywhere, so only decay could see ε."""
    grad_fn = lambda params, i: jax.tree.map(jnp.ones_like, params)
    tx = optim.sam(
      optim.sgd(optim.constant(1.0), momentum=0.0, weight_decay=0.1), 5.0
    )
    params = {'w': jnp.array([2.0, 4.0])}
    updates, _ = tx.update(
      grad_fn(params, 0),
      tx.init(params),
      params,
      grad_fn=grad_fn,
      clock=_clock(),
    )
    np.testing.assert_allclose(updates['w'], [-1.2, -1.4], rtol=1e-6)

  def test_zero_gradient_moves_nothing(self):
    params = {'w': jnp.array([1.0, 2.0])}
    grad_fn = lambda params, i: jax.tree.map(jnp.zeros_like, params)
    for adaptive in (True, False):
      tx = optim.sam(
        optim.sgd(optim.constant(0.1), weight_decay=0.0), 2.0, adaptive=adaptive
      )
      updates, _ = tx.update(
        grad_fn(params, 0),
        tx.init(params),
        params,
        grad_fn=grad_fn,
        clock=_clock(),
      )
      np.testing.assert_array_equal(updates['w'], [0.0, 0.0])

  def test_clock_reaches_the_schedule(self):
    schedule = lambda clock: jnp.where(clock.step < 2, 0.0, 1.0)
    tx = optim.sam(optim.sgd(schedule, weight_decay=0.0), 0.1)
    _assert_close(_run(tx, steps=2), _params(), rtol=0, atol=0)
    moved = tree.subtract(_run(tx, steps=3), _params())
    self.assertGreater(tree.norm(moved), 0.1)

  @parameterized.parameters(True, False)
  def test_member_of_a_vmap_over_rho_equals_the_single_run(self, adaptive):
    def run(rho):
      base = optim.sgd(optim.constant(0.05))
      return _run(optim.sam(base, rho, adaptive=adaptive))

    rhos = jnp.array([0.0, 0.1, 1.0])
    stack = jax.jit(jax.vmap(run))(rhos)
    for i, rho in enumerate(rhos):
      _assert_close(tree.take(stack, i), run(float(rho)), rtol=1e-5)

  def test_member_of_a_stack_equals_the_single_run(self):
    members = [tree.scale(c, _params()) for c in (1.0, -0.5, 3.0)]
    tx = optim.sam(optim.sgd(optim.constant(0.05)), 0.5)
    stack = jax.vmap(lambda p: _run(tx, params=p))(tree.stack(members))
    for i, member in enumerate(members):
      _assert_close(
        tree.take(stack, i), _run(tx, params=member), rtol=1e-5, atol=1e-6
      )

  def test_gradient_is_asked_for_once_per_step(self):
    calls = []

    def grad_fn(params, i):
      calls.append(i)
      return _grad_fn(params, i)

    tx = optim.sam(optim.sgd(optim.constant(0.1)), 0.1)
    params = _params()
    tx.update(
      _grad_fn(params, 0),
      tx.init(params),
      params,
      grad_fn=grad_fn,
      clock=_clock(),
    )
    self.assertEqual(calls, [0])

  def test_missing_arguments(self):
    params = _params()
    tx = optim.sam(optim.sgd(optim.constant(0.1)), 0.1)
    state = tx.init(params)
    with self.assertRaisesRegex(TypeError, 'grad_fn=grad_fn'):
      tx.update(params, state, params, clock=_clock())
    with self.assertRaisesRegex(TypeError, 'clock=clock'):
      tx.update(params, state, params, grad_fn=_grad_fn)
    with self.assertRaisesRegex(ValueError, 'grads, state, params'):
      tx.update(params, state, grad_fn=_grad_fn, clock=_clock())
