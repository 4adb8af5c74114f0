"""Triggered test sets made beforehand count as their attack does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import eval as evaluation
from tests.eval import evaluate_test

NET, IMAGES, LABELS = (
  evaluate_test.NET,
  evaluate_test.IMAGES,
  evaluate_test.LABELS,
)
KEY = jax.random.key(3)
ATTACK = {
  'stamp': evaluate_test.noise,
  'relabel': evaluate_test.to_target,
  'key': KEY,
}
STATE = NET.init(jax.random.key(5))


def flipped(images, key, index):
  """A trigger for tests; its images look into a mirror."""
  del key, index
  return images[:, ::-1]


def show(**changes):
  return evaluation.triggered(IMAGES, LABELS, **(ATTACK | changes))


def count(**options):
  return evaluate_test.as_ints(
    evaluation.count(NET, STATE, IMAGES, LABELS, **options)
  )


class ViewsTest(parameterized.TestCase):
  @parameterized.parameters(4, 23, 100)
  def test_batches_do_not_change_an_image(self, batch_size):
    index = jnp.arange(len(LABELS))
    want = evaluate_test.noise(jnp.asarray(IMAGES) / 255, KEY, index)
    shown = show(batch_size=batch_size)
    np.testing.assert_allclose(shown.images, want, atol=1e-6)
    np.testing.assert_array_equal(shown.targets, [1] * len(LABELS))
    self.assertIsNone(shown.crossed)

  @parameterized.parameters(None, flipped)
  def test_shown_images_count_as_their_attack(self, cross):
    want = count(cross=cross, with_loss=True, **ATTACK)
    got = count(shown=show(cross=cross), with_loss=True)
    self.assertEqual(got, want)
    self.assertEqual('cross_hits' in got, cross is not None)

  def test_a_stamp_goes_on_top(self):
    both = lambda x, key, index: flipped(
      evaluate_test.noise(x, key, index), key, index
    )
    want = count(**(ATTACK | {'stamp': both}))
    self.assertEqual(count(shown=show(), stamp=flipped, key=KEY), want)
    self.assertNotEqual(count(shown=show()), want)

  def test_without_clean_images_nobody_looks_at_them(self):
    seen = []

    def apply(state, images, **kwargs):
      seen.append(images)
      return NET.apply(state, images, **kwargs)

    net = NET._replace(apply=apply)
    shown = show(cross=flipped)
    counts = evaluation.count(
      net, STATE, IMAGES, LABELS, shown=shown, with_clean=False
    )
    self.assertLen(seen, 1)
    whole = count(shown=shown)
    names = {'attack_hits', 'robust_hits', 'triggered_total', 'non_finite'}
    self.assertEqual(
      evaluate_test.as_ints(counts), {name: whole[name] for name in names}
    )
    rates = evaluation.rates(counts)
    self.assertEqual(rates['asr'], evaluation.rates(whole)['asr'])
    self.assertIsNone(rates['c_acc'])
    self.assertIsNone(rates['n_clean_test'])

  def test_attacks_share_a_program(self):
    traces = []

    def apply(state, images, **kwargs):
      traces.append(1)
      return NET.apply(state, images, **kwargs)

    evaluate = functools.partial(
      evaluation.evaluate, NET._replace(apply=apply), STATE, IMAGES, LABELS
    )
    first = evaluate(shown=show())
    num = len(traces)
    second = evaluate(shown=show(stamp=flipped, relabel=evaluate_test.shifted))
    self.assertLen(traces, num)
    self.assertNotEqual(first['asr'], second['asr'])

  def test_a_broken_image_is_not_finite(self):
    broken = lambda x, key, index: x * jnp.nan
    rates = evaluation.rates(
      evaluation.count(NET, STATE, IMAGES, LABELS, shown=show(stamp=broken))
    )
    self.assertEqual((rates['asr'], rates['finite']), (0.0, False))

  @parameterized.parameters(
    ({'relabel': evaluate_test.to_target}, 'leave out `relabel`'),
    ({'cross': flipped}, 'leave out `relabel`'),
    ({'stamp': flipped}, '`stamp` and `key` belong together'),
    ({'key': KEY}, '`stamp` and `key` belong together'),
  )
  def test_an_attack_given_twice_is_refused(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      count(shown=show(), **given)

  def test_other_images_are_refused(self):
    shown = evaluation.triggered(IMAGES[:5], LABELS[:5], **ATTACK)
    with self.assertRaisesRegex(ValueError, 'eval.triggered'):
      count(shown=shown)

  def test_nothing_to_count_is_refused(self):
    with self.assertRaisesRegex(ValueError, '`with_clean=False` leaves'):
      count(with_clean=False)

  def test_a_stamp_that_changes_the_shape_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'keeps the shape'):
      show(stamp=lambda x, key, index: x[:, :1])


if __name__ == '__main__':
  absltest.main()
