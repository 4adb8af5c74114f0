"""Adam: against its recursion, with the clock's rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import optim, types


class AdamTest(parameterized.TestCase):
  def test_equals_its_recursion(self):
    grads = np.random.default_rng(0).normal(size=(5, 3))
    rates = np.asarray([0.1, 0.1, 0.05, 0.05, 0.0])
    tx = optim.adam(lambda clock: jnp.asarray(rates)[clock.step], b1=0.8)
    w, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    params = jnp.ones(3)
    state = tx.init(params)
    for t, grad in enumerate(grads):
      clock = types.Clock(jax.random.key(0), jnp.int32(t), jnp.int32(0), 5, 1)
      updates, state = tx.update(
        jnp.float32(grad), state, params, clock=clock, grad_fn=None
      )
      params = optax.apply_updates(params, updates)
      m, v = 0.8 * m + 0.2 * grad, 0.999 * v + 0.001 * grad**2
      root = np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8
      w = w - rates[t] * m / (1 - 0.8 ** (t + 1)) / root
      np.testing.assert_allclose(params, w, rtol=1e-4)

  def test_a_number_is_no_schedule(self):
    with self.assertRaisesRegex(TypeError, 'optim.constant'):
      optim.adam(0.1)
