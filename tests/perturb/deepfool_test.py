"""DeepFool: one step by hand on a linear model, where it stays, its cap."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb

SHAPE = (2, 2, 1)
KERNEL = jax.random.normal(jax.random.key(0), (4, 3))
IMAGE = jax.random.uniform(jax.random.key(1), SHAPE)


def linear(x):
  return x.ravel() @ KERNEL


def curved(x):
  return jnp.tanh(3 * linear(x)) + 0.3 * linear(x)


def start_class(predict=linear):
  return int(jnp.argmax(predict(IMAGE)))


class DeepFoolTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_one_step_by_hand(self, shift):
    source = start_class()
    target = (source + shift) % 3
    w = np.asarray(KERNEL[:, target] - KERNEL[:, source], np.float64)
    gap = float(linear(IMAGE)[source] - linear(IMAGE)[target])
    r, _, steps = perturb.deepfool(linear, IMAGE, target, max_steps=1)
    want = 1.02 * gap * w / (w @ w)
    np.testing.assert_allclose(r.ravel(), want, rtol=1e-4)
    self.assertEqual(int(steps), 1)

  @parameterized.product(shift=(1, 2), predict=(linear, curved))
  def test_arrives_at_the_target_where_it_converged(self, shift, predict):
    target = (start_class(predict) + shift) % 3
    r, converged, steps = perturb.deepfool(predict, IMAGE, target)
    self.assertTrue(bool(converged))
    self.assertEqual(int(jnp.argmax(predict(IMAGE + r))), target)
    self.assertBetween(int(steps), 1, 199)

  def test_image_of_the_target_class_is_left_alone(self):
    r, converged, steps = perturb.deepfool(linear, IMAGE, start_class())
    np.testing.assert_array_equal(r, jnp.zeros(SHAPE))
    self.assertTrue(bool(converged))
    self.assertEqual(int(steps), 0)

  def test_stays_without_gradient_and_says_so(self):
    flat = lambda x: jnp.asarray([1.0, 0.0, 0.0]) + 0 * x.sum()
    r, converged, steps = perturb.deepfool(flat, IMAGE, 2, max_steps=7)
    np.testing.assert_array_equal(r, jnp.zeros(SHAPE))
    self.assertFalse(bool(converged))
    self.assertEqual(int(steps), 7)

  def test_a_walk_out_of_all_bounds_ends_finite_and_not_converged(self):
    # The gap of class 0 is of 1e30 without a slope to speak of.
    steep = lambda x: jnp.stack(
      [jnp.float32(0), 1e30 + 1e-9 * x.sum(), x[0, 0, 0]]
    )
    r, converged, steps = perturb.deepfool(steep, IMAGE, 0, max_steps=9)
    self.assertTrue(bool(jnp.all(jnp.isfinite(r))))
    self.assertFalse(bool(converged))
    self.assertEqual(int(steps), 9)

  def test_overshoot_crosses_the_boundary(self):
    target = (start_class() + 1) % 3
    none = perturb.deepfool(linear, IMAGE, target, max_steps=1, overshoot=0.0)
    much = perturb.deepfool(linear, IMAGE, target, max_steps=1, overshoot=0.5)
    np.testing.assert_allclose(much[0], 1.5 * none[0], rtol=1e-5)

  def test_the_same_under_jit_and_vmap(self):
    run = lambda x: perturb.deepfool(curved, x, 1)
    images = jnp.stack([IMAGE, 1 - IMAGE])
    got = jax.jit(jax.vmap(run))(images)
    for i, image in enumerate(images):
      for a, b in zip(got, run(image), strict=True):
        np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6)

  def test_bad_values(self):
    with self.assertRaisesRegex(ValueError, '`max_steps=0` must be positive'):
      perturb.deepfool(linear, IMAGE, 1, max_steps=0)
    with self.assertRaisesRegex(ValueError, '`overshoot=-1`'):
      perturb.deepfool(linear, IMAGE, 1, overshoot=-1)
