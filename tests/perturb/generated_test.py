"""Losses of a generator against NumPy twins; batches that carry its images."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb

RNG = np.random.default_rng(0)


def whiten(images, rows):
  del rows
  return jnp.ones_like(images)


def softmax(z):
  e = np.exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


class GeneratedTest(parameterized.TestCase):
  @parameterized.parameters((0.2, 100.0), (0.1, 0.01), (0.05, 0.01))
  def test_identity_loss_equals_a_twin(self, distance, weight):
    clean, made = RNG.normal(size=(2, 5, 3))
    ours, theirs = RNG.normal(size=(2, 5, 2, 2, 4))
    p, q = softmax(clean), softmax(made)
    want = -np.mean(np.sum(q * np.log(softmax(p)), -1))
    want += np.mean((ours - theirs) ** 2) + weight * np.float32(distance)
    got = perturb.identity_loss(
      (jnp.float32(clean), jnp.float32(ours)),
      (jnp.float32(made), jnp.float32(theirs)),
      jnp.float32(distance),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @parameterized.parameters(
    (0.31, 1.0, True),  # image too far
    (0.1, 3.5, True),  # benign features too far
    (0.3, 3.0, False),  # on both bounds
    (0.01, 0.02, False),
  )
  def test_attacker_loss_equals_a_twin_on_both_sides(
    self, distance, benign, far
  ):
    backdoor = 1.7
    want = distance if far else 0.01 * benign - backdoor
    loss = lambda b, d, x: perturb.attacker_loss(b, d, x, 0.3, 3.0)
    args = tuple(jnp.float32(v) for v in (benign, backdoor, distance))
    np.testing.assert_allclose(loss(*args), want, rtol=1e-6)
    slopes = jax.grad(loss, (0, 1, 2))(*args)
    want = (0, 0, 1) if far else (0.01, -1, 0)
    np.testing.assert_allclose(slopes, want, rtol=1e-6)

  def test_distances_are_in_normalized_units(self):
    a, b = RNG.uniform(size=(2, 4, 3, 3, 3)).astype(np.float32)
    std = (0.5, 0.25, 0.1)
    want = np.mean(((a - b) / np.float32(std)) ** 2)
    got = perturb.normalized_mse(jnp.asarray(a), jnp.asarray(b), std)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  @parameterized.parameters(
    (128, 0.2, 26), (10, 0.2, 3), (4, 0.2, 1), (100, 0.29, 30), (4, 1.0, 4)
  )
  def test_the_right_number_is_replaced(self, b, share, count):
    images = jnp.asarray(RNG.uniform(size=(b, 2, 2, 3)), jnp.float32)
    # What is put on an image is known by its row.
    marks = 10 + jnp.arange(b, dtype=jnp.float32)[:, None, None, None]
    change = lambda x, rows: x + marks[rows]
    got = np.asarray(
      perturb.replace_share(jax.random.key(0), images, change, share)
    )
    old = np.asarray(images)
    moved = np.any(got != old, (1, 2, 3))
    self.assertEqual(moved.sum(), count)
    np.testing.assert_array_equal(got[moved], np.asarray(images + marks)[moved])

  def test_which_are_replaced_depends_on_the_key(self):
    images = jnp.zeros((64, 1, 1, 3))
    rows = [
      np.asarray(perturb.replace_share(jax.random.key(k), images, whiten, 0.2))
      for k in (0, 0, 1)
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    self.assertFalse(np.array_equal(rows[0], rows[2]))

  @parameterized.parameters(0.0, 1.5)
  def test_bad_share(self, share):
    with self.assertRaisesRegex(ValueError, rf'`share={share}` is not in'):
      perturb.replace_share(
        jax.random.key(0), jnp.zeros((4, 1, 1, 3)), whiten, share
      )

  def test_squash_is_inside_the_unit_interval_and_rises(self):
    free = jnp.linspace(-6.0, 6.0, 101)
    mask = np.asarray(perturb.squash(free))
    self.assertGreater(mask.min(), 0)
    self.assertLess(mask.max(), 1)
    self.assertTrue(np.all(np.diff(mask) > 0))
    np.testing.assert_allclose(mask[50], 0.5)
