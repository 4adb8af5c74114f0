import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.analysis import cka
from tests.reference import golden

# One program per shape; eager, every operation would be compiled by itself.
jitted = functools.partial(jax.jit, static_argnames='debiased')
linear, from_grams, hsic = map(jitted, (cka.linear, cka.from_grams, cka.hsic))
from_features, gram = jax.jit(cka.from_features), jax.jit(cka.gram)


def features(seed, n=20, d=50):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def naive(x, y):
  """CKA through the centering matrix H, in float64."""
  n = len(x)
  h = np.eye(n) - np.ones((n, n)) / n
  k, l = (h @ np.float64(z) @ np.float64(z).T @ h for z in (x, y))
  return np.sum(k * l) / np.linalg.norm(k) / np.linalg.norm(l)


def naive_hsic1(x, y):
  """The unbiased estimator as an average over 4-tuples of distinct images."""
  n = len(x)
  k, l = x @ x.T, y @ y.T
  total, count = 0.0, 0
  for i in range(n):
    for j in range(n):
      for q in range(n):
        for r in range(n):
          if len({i, j, q, r}) == 4:
            total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
            count += 1
  return total / count


class CkaTest(parameterized.TestCase):
  @parameterized.parameters(
    (20, 50, False), (60, 10, False), (20, 50, True), (60, 10, True)
  )
  def test_row1_self_scale_rotation_offset(self, n, d, debiased):
    x = features(0, n, d)
    rotation = np.linalg.qr(features(1, d, d))[0]
    offset = 100 * features(2, 1, d)
    for y in (x, -3 * x, 1e-9 * x, 1e9 * x, x @ rotation, x + offset):
      value, dead = linear(x, y, debiased=debiased)
      self.assertAlmostEqual(float(value), 1, delta=1e-5)
      self.assertFalse(bool(dead))

  @parameterized.parameters((20, 50), (60, 10))
  def test_row2_symmetric_bounded_and_paired(self, n, d):
    x, y = features(0, n, d), features(1, n, d) + 0.5 * features(0, n, d)
    value = float(linear(x, y).value)
    self.assertAlmostEqual(value, float(linear(y, x).value), delta=1e-6)
    self.assertBetween(value, 0, 1)
    order = np.random.default_rng(3).permutation(n)
    both = float(linear(x[order], y[order]).value)
    one = float(linear(x[order], y).value)
    self.assertAlmostEqual(both, value, delta=1e-6)
    self.assertGreater(abs(one - value), 0.01)

  def test_row3_single_columns_give_the_squared_correlation(self):
    x = np.array([[1.0], [0.0], [-1.0]])
    for y, expected in (([1, -2, 1], 0.0), ([1, 0, 0], 0.75)):
      y = np.array(y, np.float32)[:, None]
      for value in (
        linear(x, y).value,
        from_grams(gram(x), gram(y)).value,
      ):
        self.assertAlmostEqual(float(value), expected, delta=1e-6)

  @parameterized.parameters((12, 40, 30), (60, 10, 7))
  def test_row4_gram_and_feature_forms_agree(self, n, d, d_other):
    x = features(0, n, d)
    y = features(1, n, d_other) + x[:, :1]
    by_grams = from_grams(gram(x), gram(y))
    by_features = from_features(x, y)
    chosen = linear(x, y)
    expected = naive(x, y)
    for value, dead in (by_grams, by_features, chosen):
      self.assertAlmostEqual(float(value), expected, delta=1e-5)
      self.assertFalse(bool(dead))

  @parameterized.parameters((816, 0.62), (6144, 0.92))
  def test_row5_floor_of_independent_features(self, d, expected):
    x, y = features(0, 500, d), features(1, 500, d)
    k, l = gram(x), gram(y)
    biased = float(from_grams(k, l).value)
    debiased = float(from_grams(k, l, debiased=True).value)
    self.assertAlmostEqual(biased, expected, delta=0.01)
    self.assertAlmostEqual(biased, cka.independent_floor(500, d), delta=0.01)
    self.assertAlmostEqual(debiased, 0, delta=0.02)

  def test_row6_orthogonal_mix(self):
    # A and C: centered, orthonormal columns, orthogonal to each other.
    basis = np.linalg.qr(
      np.concatenate([np.ones((40, 1)), features(0, 40, 12)], axis=1)
    )[0][:, 1:]
    a, c = basis[:, :6], basis[:, 6:]
    values = []
    for q in (0, 0.25, 0.5, 0.75, 1):
      d = np.concatenate([np.sqrt(1 - q) * a, np.sqrt(q) * c], axis=1)
      expected = (1 - q) / np.sqrt((1 - q) ** 2 + q**2)
      values.append(float(linear(a, d).value))
      self.assertAlmostEqual(values[-1], expected, delta=1e-4)
    self.assertEqual(sorted(values, reverse=True), values)
    self.assertLen(set(values), 5)

  def test_debiased_hsic_is_the_average_over_distinct_tuples(self):
    x, y = features(0, 7, 3), features(1, 7, 4)
    value = hsic(gram(x), gram(y), debiased=True)
    self.assertAlmostEqual(float(value), naive_hsic1(x, y), delta=1e-5)

  @parameterized.parameters(0.0, 0.1, 1e5)
  def test_constant_features_are_dead(self, constant):
    x = np.full((50, 8), constant, np.float32)
    for pair in ((x, features(1, 50, 8)), (features(1, 50, 8), x), (x, x)):
      for debiased in (False, True):
        value, dead = linear(*pair, debiased=debiased)
        self.assertEqual(float(value), 0)
        self.assertTrue(bool(dead))

  def test_one_dead_neuron_does_not_matter(self):
    x, y = features(0), features(1)
    x_dead = np.concatenate([x, np.full((20, 3), 0.7, np.float32)], axis=1)
    self.assertAlmostEqual(
      float(linear(x_dead, y).value),
      float(linear(x, y).value),
      delta=1e-6,
    )

  def test_maps_are_flattened(self):
    x = features(0, 10, 24)
    maps = x.reshape(10, 2, 3, 4)
    self.assertEqual(gram(maps).tolist(), gram(x).tolist())

  def test_bfloat16_features_are_compared_in_float32(self):
    x = jnp.asarray(features(0), jnp.bfloat16)
    self.assertEqual(linear(x, x).value.dtype, jnp.float32)

  def test_wrong_shapes_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'same images'):
      linear(features(0, 10), features(0, 11))
    with self.assertRaisesRegex(ValueError, 'same images'):
      hsic(jnp.zeros((3, 3)), jnp.zeros((4, 4)))
    with self.assertRaisesRegex(ValueError, 'at least 4 images'):
      linear(features(0, 3), features(1, 3), debiased=True)

  @parameterized.parameters(
    'd30_0', 'd30_1', 'd30_2', 'd200_0', 'd200_1', 'd200_2'
  )
  def test_golden(self, name):
    stored = golden.arrays('cka')
    x, y = stored[f'X_{name}'], stored[f'Y_{name}']
    np.testing.assert_allclose(
      linear(x, y).value, stored[f'cka_{name}'], rtol=4e-6
    )
    np.testing.assert_allclose(
      linear(x, x).value, stored[f'self_cka_{name}'], rtol=4e-6
    )
    np.testing.assert_allclose(
      hsic(gram(x), gram(y)),
      stored[f'hsic_unnormalised_{name}'],
      rtol=4e-6,
    )

  def test_golden_mixed_widths(self):
    stored = golden.arrays('cka')
    value = linear(stored['X_d30_0'], stored['Y_d200_1']).value
    np.testing.assert_allclose(
      value, stored['cka_mixed_X_d30_0_Y_d200_1'], rtol=4e-6
    )
