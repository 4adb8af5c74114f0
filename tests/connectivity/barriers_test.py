import numpy as np
from absl.testing import parameterized

from bdjax import connectivity

T = np.linspace(0, 1, 21)


class BarriersTest(parameterized.TestCase):
  @parameterized.parameters(
    (T * (1 - T), 0.25),  # a bump on top of equal ends
    (0.1 + 0.5 * T, 0.0),  # the straight line itself
    (T**2, 0.0),  # below the line all the way
    (np.sqrt(T), 0.25),  # sqrt(t) − t peaks at t = 1/4
    (0.3 + 0 * T, 0.0),
  )
  def test_barrier_of_closed_forms(self, error, expected):
    value = connectivity.barrier(T, error)
    self.assertAlmostEqual(float(value), expected, delta=1e-9)

  def test_barrier_is_measured_from_the_line_not_from_an_end(self):
    error = 0.8 * T + np.where(np.isclose(T, 0.5), 0.2, 0)
    self.assertAlmostEqual(
      float(connectivity.barrier(T, error)), 0.2, delta=1e-9
    )

  def test_auc_of_closed_forms(self):
    self.assertAlmostEqual(float(connectivity.auc(T, T)), 0.5, delta=1e-12)
    self.assertAlmostEqual(
      float(connectivity.auc(T, 0 * T + 0.7)), 0.7, delta=1e-12
    )
    # The trapezoid rule is off by h²/6 for t².
    expected = 1 / 3 + 0.05**2 / 6
    self.assertAlmostEqual(
      float(connectivity.auc(T, T**2)), expected, delta=1e-9
    )

  def test_uneven_positions_are_weighted(self):
    t = np.array([0, 0.1, 1])
    value = connectivity.auc(t, np.array([1, 0, 0]))
    self.assertAlmostEqual(float(value), 0.05, delta=1e-12)

  def test_stacked_paths(self):
    errors = np.stack([T * (1 - T), 0 * T])
    np.testing.assert_allclose(
      connectivity.barrier(T, errors), [0.25, 0], atol=1e-9
    )
    np.testing.assert_allclose(
      connectivity.auc(T, errors), [1 / 6 - 0.05**2 / 6, 0], atol=1e-9
    )

  @parameterized.parameters(
    (np.where(T < 0.42, 1.0, 0.0), 0.4),
    (np.where(T < 0.42, 0.5, 0.0), 0.4),  # exactly half counts
    (0 * T, None),
    (0 * T + 1, 1.0),
    (np.where(np.isclose(T, 0.9), 0.6, 0.1), 0.9),  # not monotone
  )
  def test_tau_star(self, asr, expected):
    value = connectivity.tau_star(T, asr)
    if expected is None:
      self.assertIsNone(value)
    else:
      self.assertAlmostEqual(value, expected, delta=1e-9)

  def test_summary_in_the_words_of_a_record(self):
    c_acc, asr = 0.9 - T * (1 - T), 1 - T
    result = connectivity.summarize(T, c_acc, asr)
    self.assertAlmostEqual(result['barrier_clean'], 0.25, delta=1e-9)
    self.assertAlmostEqual(result['backdoor_error_auc'], 0.5, delta=1e-9)
    self.assertAlmostEqual(result['tau_star'], 0.5, delta=1e-9)

  def test_not_finite_is_missing(self):
    broken = np.where(T == 0.5, np.nan, 0.5)
    result = connectivity.summarize(T, broken, broken)
    self.assertEqual(
      result,
      {'barrier_clean': None, 'backdoor_error_auc': None, 'tau_star': None},
    )

  @parameterized.parameters(
    ([0, 0.5], [1, 1], 'exactly 0 and 1'),
    ([0, 0.7, 0.3, 1], [1, 1, 1, 1], 'must increase'),
    ([0, 1], [1, 1, 1], 'give one each'),
  )
  def test_errors_name_the_cure(self, t, values, message):
    with self.assertRaisesRegex(ValueError, message):
      connectivity.barrier(t, values)
