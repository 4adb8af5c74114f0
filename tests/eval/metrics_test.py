import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import eval as evaluation
from bdjax.eval import metrics

COUNTS = {'clean_hits': 9, 'clean_total': 12, 'non_finite': 0}
ATTACK = {'attack_hits': 3, 'robust_hits': 1, 'triggered_total': 8}


class MetricsTest(parameterized.TestCase):
  def test_der_closed_form(self):
    self.assertAlmostEqual(evaluation.der(1.0, 0.05, 0.9, 0.88), 0.965)

  def test_der_of_identical_models_is_one_half(self):
    self.assertEqual(evaluation.der(0.97, 0.97, 0.91, 0.91), 0.5)

  @parameterized.parameters(
    (0.2, 0.9, 0.9, 0.9, 0.5),  # a rising ASR is not punished twice
    (1.0, 0.0, 0.5, 0.9, 1.0),  # a rising accuracy is not rewarded
    (1.0, 0.0, 1.0, 0.0, 0.5),  # all gain paid by all accuracy
    (0.0, 0.0, 1.0, 0.0, 0.0),
  )
  def test_der_clips_each_change_by_itself(self, a0, a1, c0, c1, want):
    self.assertAlmostEqual(evaluation.der(a0, a1, c0, c1), want)

  @parameterized.parameters(
    (0.0, 0.8, 0.9, 0.88, 0.89),
    (0.5, 0.5, 0.9, 0.9, 0.5),
    (0.8, 0.1, 0.9, 0.9, 0.5),
  )
  def test_rir_closed_form(self, r0, r1, c0, c1, want):
    self.assertAlmostEqual(evaluation.rir(r0, r1, c0, c1), want)

  def test_ratings_take_arrays_and_traced_numbers(self):
    before, after = jnp.array([1.0, 1.0]), jnp.array([0.05, 1.0])
    got = jax.jit(evaluation.der)(before, after, 0.9, 0.88)
    np.testing.assert_allclose(got, [0.965, 0.49], atol=1e-6)

  def test_percentages_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'asr_before=95.0'):
      evaluation.der(95.0, 5.0, 0.9, 0.9)
    with self.assertRaisesRegex(ValueError, 'r_acc_after=5.0'):
      evaluation.rir(0.5, 5.0, 0.9, 0.9)

  def test_rates_of_one_model_are_python_numbers(self):
    rates = metrics.rates(
      {k: jnp.int32(v) for k, v in (COUNTS | ATTACK).items()}
    )
    self.assertEqual(
      rates,
      {
        'c_acc': 0.75,
        'asr': 0.375,
        'r_acc': 0.125,
        'n_clean_test': 12,
        'n_triggered_test': 8,
        'finite': True,
      },
    )
    self.assertIs(type(rates['c_acc']), float)
    self.assertIs(type(rates['n_clean_test']), int)
    self.assertIs(type(rates['finite']), bool)

  def test_missing_attack_is_none_and_not_zero(self):
    rates = metrics.rates(COUNTS)
    self.assertIsNone(rates['asr'])
    self.assertIsNone(rates['r_acc'])
    self.assertIsNone(rates['n_triggered_test'])

  def test_no_triggered_image_gives_none(self):
    rates = metrics.rates(COUNTS | dict.fromkeys(ATTACK, 0))
    self.assertIsNone(rates['asr'])
    self.assertEqual(rates['n_triggered_test'], 0)

  def test_rates_of_a_stack_are_arrays(self):
    counts = {k: np.array([v, 2 * v, 0]) for k, v in (COUNTS | ATTACK).items()}
    counts['clean_total'] = np.array([12, 36, 12])
    counts['non_finite'] = np.array([0, 0, 12])
    rates = metrics.rates(counts)
    np.testing.assert_allclose(rates['c_acc'], [0.75, 0.5, 0])
    np.testing.assert_allclose(rates['asr'], [0.375, 0.375, np.nan])
    np.testing.assert_array_equal(rates['finite'], [True, True, False])

  def test_cross_rates_have_totals_of_their_own(self):
    cross = {'cross_hits': 6, 'cross_attack_hits': 2}
    rates = metrics.rates(COUNTS | ATTACK | cross)
    self.assertEqual((rates['cross_acc'], rates['cross_asr']), (0.5, 0.25))
    without = metrics.rates(COUNTS | ATTACK)
    self.assertNotIn('cross_acc', without)
    self.assertEqual(rates, without | {'cross_acc': 0.5, 'cross_asr': 0.25})

  def test_unknown_counts_are_named(self):
    with self.assertRaisesRegex(ValueError, 'eval.count'):
      metrics.rates(COUNTS | {'attack_hits': 1})

  def test_traced_counts_are_sent_outside(self):
    with self.assertRaisesRegex(TypeError, 'outside'):
      jax.jit(metrics.rates)(COUNTS)


if __name__ == '__main__':
  absltest.main()
