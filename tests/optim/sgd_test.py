"""Tests of SGD against the recursion written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import optim, types


def _clock(step=0):
  return types.Clock(jax.random.key(0), jnp.int32(step), jnp.int32(0), 10, 1)


def _params():
  return {'w': jnp.array([1.0, -2.0, 0.5]), 'b': jnp.array(0.25)}


def _grads(step):
  return {'w': jnp.array([0.3, 0.1, -1.0]) * (step + 1), 'b': jnp.array(-0.5)}


def _run(tx, steps=4):
  params = _params()
  state = tx.init(params)
  for k in range(steps):
    updates, state = tx.update(_grads(k), state, params, clock=_clock(k))
    params = optax.apply_updates(params, updates)
  return params


def _naive(name, rates, mu, decay, nesterov):
  w = np.array(_params()[name], np.float64)
  v = np.zeros_like(w)
  for k, lr in enumerate(rates):
    g = np.asarray(_grads(k)[name], np.float64) + decay * w
    v = mu * v + g
    w = w - lr * (g + mu * v if nesterov else v)
  return w


class SgdTest(parameterized.TestCase):
  @parameterized.product(
    mu=(0.0, 0.9), decay=(0.0, 0.1), nesterov=(False, True)
  )
  def test_equals_the_recursion(self, mu, decay, nesterov):
    tx = optim.sgd(
      optim.cosine_steps(0.2, 4),
      momentum=mu,
      weight_decay=decay,
      nesterov=nesterov,
    )
    rates = [0.1 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    params = _run(tx)
    for name in ('w', 'b'):
      np.testing.assert_allclose(
        params[name], _naive(name, rates, mu, decay, nesterov), rtol=2e-6
      )

  def test_decay_enters_before_momentum(self):
    """With zero gradients the decay itself gathers momentum."""
    tx = optim.sgd(optim.constant(1.0), momentum=0.5, weight_decay=0.1)
    params, zero = {'w': jnp.array(1.0)}, {'w': jnp.array(0.0)}
    state = tx.init(params)
    for expected in (0.9, 0.9 - (0.05 + 0.09)):
      updates, state = tx.update(zero, state, params, clock=_clock())
      params = optax.apply_updates(params, updates)
      np.testing.assert_allclose(params['w'], expected, rtol=1e-6)

  def test_a_new_rate_acts_on_the_old_momentum(self):
    schedule = lambda clock: jnp.where(clock.step == 0, 1.0, 0.5)
    tx = optim.sgd(schedule, momentum=1.0, weight_decay=0.0)
    params = {'w': jnp.array(0.0)}
    state = tx.init(params)
    _, state = tx.update({'w': jnp.array(1.0)}, state, params, clock=_clock(0))
    updates, _ = tx.update(
      {'w': jnp.array(0.0)}, state, params, clock=_clock(1)
    )
    self.assertEqual(updates['w'], -0.5)

  def test_floats_may_be_traced(self):
    def run(lr, mu, decay):
      return _run(
        optim.sgd(optim.constant(lr), momentum=mu, weight_decay=decay)
      )

    values = [jnp.array(v) for v in ([0.1, 0.2], [0.9, 0.5], [0.0, 0.1])]
    got = jax.jit(jax.vmap(run))(*values)
    for i in range(2):
      expected = run(*[float(v[i]) for v in values])
      np.testing.assert_allclose(got['w'][i], expected['w'], rtol=2e-6)

  def test_other_extra_arguments_are_dropped(self):
    tx = optim.sgd(optim.constant(0.1))
    params = _params()
    args = (_grads(0), tx.init(params), params)
    a, _ = tx.update(*args, clock=_clock())
    b, _ = tx.update(*args, clock=_clock(), grad_fn=None, value=3.0)
    np.testing.assert_array_equal(a['w'], b['w'])

  def test_updates_keep_their_dtype(self):
    tx = optim.scale_by_clock(optim.constant(0.5))
    g = {'w': jnp.ones(2, jnp.bfloat16)}
    updates, _ = tx.update(g, tx.init(g), clock=_clock())
    self.assertEqual(updates['w'].dtype, jnp.bfloat16)

  def test_missing_clock(self):
    tx = optim.sgd(optim.constant(0.1))
    params = _params()
    with self.assertRaisesRegex(TypeError, 'clock=clock'):
      tx.update(_grads(0), tx.init(params), params)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(TypeError, r'optim.constant\(0.1\)'):
      optim.sgd(0.1)
    with self.assertRaisesRegex(ValueError, 'momentum=-1'):
      optim.sgd(optim.constant(0.1), momentum=-1)
    with self.assertRaisesRegex(ValueError, 'weight_decay=-1'):
      optim.sgd(optim.constant(0.1), weight_decay=-1)
