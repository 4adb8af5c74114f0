"""Polarizers: identities at the start, arithmetic by hand, their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models

SHAPE = (3, 2, 4)
X = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)


def with_params(state, **changes):
  part = {**state.params['part0'], **changes}
  return type(state)(params={'part0': part}, batch_stats=state.batch_stats)


class PolarizerTest(parameterized.TestCase):
  @parameterized.product(form=models.FORMS, residual=(False, True))
  def test_is_an_identity_at_the_start(self, form, residual):
    layer = models.polarizer(form, residual=residual)
    y, _ = layer.apply(layer.init(SHAPE), jnp.asarray(X))
    np.testing.assert_allclose(y, X, rtol=3e-5, atol=1e-6)

  @parameterized.product(form=models.FORMS, residual=(False, True))
  def test_every_form_can_learn_from_the_start(self, form, residual):
    layer = models.polarizer(form, residual=residual)
    state = layer.init(SHAPE)

    def loss(params):
      moved = type(state)(params=params, batch_stats=state.batch_stats)
      return jnp.sum(layer.apply(moved, jnp.asarray(X))[0] ** 2)

    grads = jax.tree.leaves(jax.grad(loss)(state.params))
    self.assertTrue(any(bool(jnp.any(g != 0)) for g in grads))

  def test_convbn_by_hand(self):
    layer = models.polarizer('convbn')
    rng = np.random.default_rng(1)
    kernel, scale, bias = rng.normal(size=(4, 4)), *rng.normal(size=(2, 4))
    mean, var = rng.normal(size=4), rng.uniform(1, 2, 4)
    state = with_params(
      layer.init(SHAPE),
      kernel=jnp.float32(kernel),
      scale=jnp.float32(scale),
      bias=jnp.float32(bias),
    )
    stats = {'part0': {'mean': jnp.float32(mean), 'var': jnp.float32(var)}}
    state = type(state)(params=state.params, batch_stats=stats)
    y, after = layer.apply(state, jnp.asarray(X))
    want = (X @ kernel - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
      after.batch_stats['part0']['mean'], np.float32(mean)
    )

  def test_training_normalizes_and_moves_statistics(self):
    layer = models.polarizer('convbn', norm_decay=0.8)
    y, after = layer.apply(layer.init(SHAPE), jnp.asarray(X), train=True)
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), np.zeros(4), atol=1e-5)
    flat = X.reshape(-1, 4)
    got = after.batch_stats['part0']
    np.testing.assert_allclose(got['mean'], 0.2 * flat.mean(0), rtol=1e-5)
    want = 0.8 + 0.2 * flat.var(0, ddof=1)
    np.testing.assert_allclose(got['var'], want, rtol=1e-5)

  @parameterized.parameters(('linear', SHAPE), ('linear_light', (4,)))
  def test_linear_forms_by_hand(self, form, shape):
    layer = models.polarizer(form)
    rng = np.random.default_rng(2)
    w, b = rng.normal(size=(2, *shape)).astype(np.float32)
    state = with_params(layer.init(SHAPE), weight=w, bias=b)
    y, _ = layer.apply(state, jnp.asarray(X))
    np.testing.assert_allclose(y, X * w + b, rtol=1e-5, atol=1e-6)

  def test_mlp_cuts_what_is_negative(self):
    layer = models.polarizer('mlp')
    y, _ = layer.apply(layer.init(SHAPE), jnp.asarray(X - 0.5))
    np.testing.assert_allclose(y, np.maximum(X - 0.5, 0), rtol=1e-6)

  def test_unknown_form(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'convbn'"):
      models.polarizer('conv_bn')
