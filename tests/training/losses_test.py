"""Losses against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import training


class LossesTest(parameterized.TestCase):
  def test_cross_entropy_of_uniform_logits_is_log_n(self):
    loss = training.cross_entropy(jnp.zeros((3, 4)), jnp.asarray([0, 1, 2]))
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)

  def test_smoothed_kl_without_smoothing_is_cross_entropy(self):
    logits = jax.random.normal(jax.random.key(0), (5, 3))
    labels = jnp.asarray([0, 1, 2, 1, 0])
    np.testing.assert_allclose(
      training.smoothed_kl(logits, labels, 0.0),
      training.cross_entropy(logits, labels),
      rtol=1e-6,
    )

  def test_smoothed_kl_is_zero_at_its_target(self):
    target = jnp.asarray([[0.9, 0.05, 0.05]])
    loss = training.smoothed_kl(jnp.log(target), jnp.asarray([0]), 0.1)
    np.testing.assert_allclose(loss, 0, atol=1e-6)

  def test_smoothed_kl_gradient_is_probability_minus_target(self):
    logits, labels = jnp.asarray([[0.3, -0.2, 1.0]]), jnp.asarray([2])
    grad = jax.grad(lambda z: training.smoothed_kl(z, labels, 0.1))(logits)
    expected = jax.nn.softmax(logits) - jnp.asarray([[0.05, 0.05, 0.9]])
    np.testing.assert_allclose(grad, expected, atol=1e-6)

  def test_accuracy_counts_the_largest_logit(self):
    logits = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    labels = jnp.asarray([0, 1, 1, 1])
    np.testing.assert_allclose(training.accuracy(logits, labels), 0.75)
