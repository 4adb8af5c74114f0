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


def divergence(p, q):
  """Jensen–Shannon divergence of two distributions, in NumPy."""
  m = (p + q) / 2
  half = lambda a: np.sum(a * np.log(a / m))
  return (half(p) + half(q)) / 2


class JensenShannonTest(parameterized.TestCase):
  def test_equals_the_formula_and_is_symmetric(self):
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), 5), rng.dirichlet(np.ones(4), 5)
    logits = jnp.float32(np.log(p)), jnp.float32(np.log(q))
    want = [divergence(a, b) for a, b in zip(p, q, strict=True)]
    got = training.jensen_shannon(*logits)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    back = training.jensen_shannon(*logits[::-1])
    np.testing.assert_allclose(back, got, rtol=1e-5)

  def test_is_log_two_without_a_common_class(self):
    logits = jnp.asarray([[60.0, 0.0]]), jnp.asarray([[0.0, 60.0]])
    got = training.jensen_shannon(*logits)
    np.testing.assert_allclose(got, [np.log(2)], rtol=1e-6)

  def test_equal_predictions_have_neither_value_nor_gradient(self):
    logits = jax.random.normal(jax.random.key(0), (3, 4))
    loss = lambda z: jnp.sum(training.jensen_shannon(z, logits))
    value, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(grad, jnp.zeros((3, 4)))


class UnlikelihoodTest(parameterized.TestCase):
  def test_half_a_probability_is_log_two(self):
    logits = jnp.asarray([[1.0, 1.0], [3.0, 3.0]])
    got = training.unlikelihood(logits, jnp.asarray([0, 1]))
    np.testing.assert_allclose(got, np.log([2, 2]), atol=1e-5)

  def test_gradient_is_that_of_minus_log_of_the_rest(self):
    logits, label = jnp.asarray([[0.3, -0.2, 1.0]]), jnp.asarray([2])
    grad = jax.grad(lambda z: jnp.sum(training.unlikelihood(z, label)))(logits)
    p = jax.nn.softmax(logits)[0]
    # d/dz of −log(1 − p_y) is p_y on the label, −p_y p_k/(1 − p_y) elsewhere.
    want = [-p[2] * p[0] / (1 - p[2]), -p[2] * p[1] / (1 - p[2]), p[2]]
    np.testing.assert_allclose(grad[0], jnp.asarray(want), rtol=1e-4)

  def test_a_class_given_up_has_no_gradient(self):
    logits, label = jnp.asarray([[-8.0, 0.0, 0.0]]), jnp.asarray([0])
    loss = lambda z: jnp.sum(training.unlikelihood(z, label))
    value, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, -np.log(0.999 + 1e-6), rtol=1e-4)
    np.testing.assert_array_equal(grad, jnp.zeros((1, 3)))

  def test_certainty_is_finite(self):
    logits, label = jnp.asarray([[200.0, 0.0]]), jnp.asarray([0])
    loss = lambda z: jnp.sum(training.unlikelihood(z, label))
    value, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, -np.log(1e-6), rtol=0.01)
    self.assertTrue(bool(jnp.all(jnp.isfinite(grad))))


class RepulsionTest(parameterized.TestCase):
  def test_half_a_probability_is_log_two(self):
    logits = jnp.zeros((3, 2))
    got = training.repulsion(logits, jnp.asarray([0, 1, 0]))
    np.testing.assert_allclose(got, np.full(3, -np.log(0.5001)), rtol=1e-6)

  def test_gradient_is_that_of_minus_log_of_the_rest(self):
    logits = jnp.asarray([[1.0, -0.5, 0.2]])
    grad = jax.grad(lambda z: training.repulsion(z, jnp.asarray([1]))[0])
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    want = p[1] / (1.0001 - p[1]) * (np.eye(3)[1] - p)
    np.testing.assert_allclose(grad(logits)[0], want, rtol=1e-5)

  def test_certainty_is_finite(self):
    logits = jnp.asarray([[200.0, 0.0]])
    got = training.repulsion(logits, jnp.asarray([0]))
    np.testing.assert_allclose(got, [-np.log(1e-4)], rtol=1e-3)


class AttentionTest(parameterized.TestCase):
  def features(self, seed=0, channels=4):
    return jax.random.normal(jax.random.key(seed), (2, 3, 3, channels))

  def test_map_is_energy_over_its_norm(self):
    features = self.features()
    energy = np.sum(np.asarray(features, np.float64) ** 2, -1)
    for i in range(2):
      want = energy[i] / np.linalg.norm(energy[i])
      got = training.attention_map(features)[i]
      np.testing.assert_allclose(got, want, rtol=1e-5)
      self.assertLessEqual(float(jnp.linalg.norm(got)), 1)

  def test_scale_and_number_of_channels_do_not_matter(self):
    wide = jnp.concatenate([self.features()] * 2, -1)
    distance = training.attention_distance(3 * self.features(), wide)
    np.testing.assert_allclose(distance, 0, atol=1e-10)

  def test_distance_by_hand(self):
    student = jnp.asarray([1.0, 0.0]).reshape(1, 1, 2, 1)
    teacher = jnp.asarray([0.0, 2.0]).reshape(1, 1, 2, 1)
    got = training.attention_distance(student, teacher)
    np.testing.assert_allclose(got, 1.0, rtol=1e-5)

  def test_dead_map_is_zero_with_finite_gradient(self):
    zero = jnp.zeros((1, 2, 2, 3))
    np.testing.assert_array_equal(training.attention_map(zero), zero[..., 0])
    loss = lambda x: training.attention_distance(x, jnp.ones_like(x))
    self.assertTrue(bool(jnp.all(jnp.isfinite(jax.grad(loss)(zero)))))

  def test_pooled_features_are_one_place(self):
    pooled = self.features()[:, 0, 0]
    np.testing.assert_allclose(training.attention_map(pooled), 1, atol=1e-5)

  def test_maps_of_different_places(self):
    with self.assertRaisesRegex(ValueError, 'at the same tap'):
      training.attention_distance(self.features(), self.features()[:, :2])
