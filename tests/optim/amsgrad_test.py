"""AMSGrad: against its recursion, torch's numbers and optax's other form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import optim, types
from tests.reference import golden

LR = 1e-2


def clock(step=0):
  return types.Clock(jax.random.key(0), jnp.int32(step), jnp.int32(0), 20, 1)


def run(tx, grads, start=0.0):
  """Parameters after each of the gradients, [steps, n]."""
  params = jnp.full(np.shape(grads)[1:], start)
  state, seen = tx.init(params), []
  for k, grad in enumerate(grads):
    updates, state = tx.update(jnp.asarray(grad), state, params, clock=clock(k))
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return np.stack(seen)


def twin(grads, *, lr, b1=0.9, b2=0.999, decay=0.0, start=0.0):
  """Torch's recursion in NumPy."""
  w = np.full(np.shape(grads)[1:], start, np.float64)
  m, v, v_max, seen = 0 * w, 0 * w, 0 * w, []
  for t, grad in enumerate(np.asarray(grads, np.float64), 1):
    grad = grad + decay * w
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad**2
    v_max = np.maximum(v_max, v)
    root = np.sqrt(v_max) / np.sqrt(1 - b2**t) + 1e-8
    w = w - lr / (1 - b1**t) * m / root
    seen.append(w)
  return np.stack(seen)


class AmsgradTest(parameterized.TestCase):
  def test_constant_gradient_moves_by_the_rate(self):
    grad = np.asarray([3.0, -0.02, 0.5], np.float32)
    path = run(optim.amsgrad(optim.constant(LR)), [grad] * 8)
    want = -LR * np.arange(1, 9)[:, None] * np.sign(grad)[None]
    np.testing.assert_allclose(path, want, rtol=1e-4)

  @parameterized.product(b1=(0.5, 0.9), b2=(0.9, 0.999), decay=(0.0, 0.3))
  def test_equals_the_recursion(self, b1, b2, decay):
    grads = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    tx = optim.amsgrad(optim.constant(LR), b1=b1, b2=b2, weight_decay=decay)
    want = twin(grads, lr=LR, b1=b1, b2=b2, decay=decay, start=1.0)
    np.testing.assert_allclose(run(tx, grads, 1.0), want, rtol=1e-5)

  def test_falling_gradients_tell_it_from_optax(self):
    grads = 0.5 ** np.arange(12, dtype=np.float32)[:, None]
    ours = run(optim.amsgrad(optim.constant(LR)), grads)
    theirs = run(optax.with_extra_args_support(optax.amsgrad(LR)), grads)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    # Theirs keeps the corrected first moment g₁² as a floor: smaller steps.
    self.assertGreater(abs(ours[-1, 0]), 1.2 * abs(theirs[-1, 0]))

  def test_equals_torch(self):
    arrays = golden.arrays('optim_extras')
    with jax.enable_x64(True):
      tx = optim.amsgrad(optim.constant(1e-4))
      path = run(tx, arrays['amsgrad_grads'], 0.0)
    self.assertEqual(path.dtype, np.float64)
    np.testing.assert_allclose(path, arrays['amsgrad_params'], rtol=1e-6)

  def test_largest_moment_never_falls(self):
    tx = optim.scale_by_amsgrad()
    params = jnp.zeros(1)
    state, seen = tx.init(params), []
    for grad in (2.0, 0.0, 0.0, 1.0):
      _, state = tx.update(jnp.full((1,), grad), state)
      seen.append((float(state.nu[0]), float(state.nu_max[0])))
    self.assertLess(seen[2][0], seen[0][0])
    np.testing.assert_allclose([top for _, top in seen[:3]], 4e-3, rtol=1e-4)

  def test_zero_gradient_stays(self):
    path = run(optim.amsgrad(optim.constant(LR)), np.zeros((3, 2)), 1.0)
    np.testing.assert_array_equal(path, np.ones((3, 2)))

  def test_rate_follows_the_clock(self):
    tx = optim.amsgrad(optim.cosine_steps(LR, 2))
    path = run(tx, np.ones((3, 1), np.float32))
    rates = -np.diff(path[:, 0], prepend=0)
    np.testing.assert_allclose(rates, [LR, LR / 2, 0], rtol=1e-4, atol=1e-8)

  @parameterized.parameters(
    (dict(b1=1.5), r'`b1=1.5` is not in \[0, 1\]'),
    (dict(b2=-0.1), r'`b2=-0.1` is not in \[0, 1\]'),
    (dict(weight_decay=-1.0), '`weight_decay=-1.0` must not be negative'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      optim.amsgrad(optim.constant(LR), **values)

  def test_rate_must_be_a_schedule(self):
    with self.assertRaisesRegex(TypeError, 'optim.constant'):
      optim.amsgrad(LR)
