import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import types
from bdjax.attacks import selection
from tests.reference import golden

RATIOS = (0.1, 0.05, 0.01, 0.005, 0.001)
LABELS = np.arange(200) % 4


def reference():
  return golden.arrays('poison_indices')


def chosen(labels, key=None, **kwargs):
  """Sorted poisoned indices."""
  key = jax.random.key(0) if key is None else key
  kind = selection.draw(selection.Selection(**kwargs), key, labels)
  return np.flatnonzero(np.asarray(kind) == types.POISONED)


class SelectionTest(parameterized.TestCase):
  @parameterized.parameters(
    (50000, (5000, 2500, 500, 250, 50)),
    (39209, (3921, 1960, 392, 196, 39)),
    (100000, (10000, 5000, 1000, 500, 100)),
  )
  def test_counts_of_the_benchmark_ratios(self, size, want):
    got = tuple(
      selection.num_selected(selection.Selection(poison_ratio=r), size)
      for r in RATIOS
    )
    self.assertEqual(got, want)

  @parameterized.parameters((0.0025, 2), (0.0035, 4))
  def test_halves_round_to_even(self, ratio, want):
    half = selection.Selection(poison_ratio=ratio)
    self.assertEqual(selection.num_selected(half, 1000), want)

  @parameterized.product(rng=selection.INDEX_RNGS, ratio=(0.5, 0.1, 0.005))
  def test_exact_number_is_drawn_as_kind_codes(self, rng, ratio):
    drawn = selection.draw(
      selection.Selection(poison_ratio=ratio, index_rng=rng),
      jax.random.key(0),
      LABELS,
    )
    self.assertEqual((drawn.shape, drawn.dtype), ((200,), np.dtype('int8')))
    codes, counts = np.unique(drawn, return_counts=True)
    self.assertEqual(codes.tolist(), [types.CLEAN, types.POISONED])
    self.assertEqual(counts[1], round(200 * ratio))

  @parameterized.product(rng=selection.INDEX_RNGS, only_class=(None, 2))
  def test_smaller_ratios_are_nested_in_larger_ones(self, rng, only_class):
    sets = [
      set(chosen(LABELS, poison_ratio=r, index_rng=rng, only_class=only_class))
      for r in (0.005, 0.01, 0.05, 0.1, 0.25)
    ]
    for small, large in zip(sets, sets[1:], strict=False):
      self.assertLess(small, large)

  @parameterized.product(rng=selection.INDEX_RNGS)
  def test_clean_label_takes_the_target_class_only(self, rng):
    got = chosen(LABELS, poison_ratio=0.2, only_class=3, index_rng=rng)
    self.assertLen(got, 40)
    self.assertEqual(set(LABELS[got]), {3})

  def test_clean_label_can_take_the_whole_class(self):
    got = chosen(LABELS, poison_ratio=0.25, only_class=1)
    np.testing.assert_array_equal(got, np.flatnonzero(LABELS == 1))

  def test_clean_label_refusal_names_the_class_size(self):
    with self.assertRaisesRegex(
      ValueError, r'60 poisoned .* class 1 has only 50 of the 200.*≤ 0.25'
    ):
      chosen(LABELS, poison_ratio=0.3, only_class=1)

  def test_clean_label_refuses_traced_labels(self):
    some = selection.Selection(poison_ratio=0.1, only_class=1)
    draw = jax.jit(functools.partial(selection.draw, some))
    with self.assertRaisesRegex(TypeError, 'close over the labels'):
      draw(jax.random.key(0), LABELS)

  def test_explicit_count_overrides_the_ratio(self):
    self.assertLen(chosen(LABELS, poison_ratio=0.5, num_poison=7), 7)
    self.assertEmpty(chosen(LABELS, num_poison=0))

  def test_explicit_count_is_bounded_by_the_set(self):
    with self.assertRaisesRegex(ValueError, 'exceeds the 200 examples'):
      chosen(LABELS, num_poison=201)

  def test_percentages_are_refused_with_the_fraction(self):
    with self.assertRaisesRegex(ValueError, 'use 0.05 for 5 %'):
      selection.Selection(poison_ratio=5)

  def test_a_ratio_that_rounds_to_nothing_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'rounds to 0; raise it'):
      chosen(LABELS, poison_ratio=0.001)

  def test_unknown_generator_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'numpy_legacy'):
      selection.Selection(index_rng='numpy')

  def test_untyped_key_is_refused(self):
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      chosen(LABELS, key=np.zeros(2, np.uint32))

  def test_keys_decide_and_seeds_do_not(self):
    one, two = jax.random.key(1), jax.random.key(2)
    first = chosen(LABELS, key=one)
    np.testing.assert_array_equal(chosen(LABELS, key=one, seed=5), first)
    self.assertNotEqual(chosen(LABELS, key=two).tolist(), first.tolist())

  def test_legacy_depends_on_the_seed_alone(self):
    draw = functools.partial(chosen, LABELS, index_rng='numpy_legacy')
    first = draw(key=jax.random.key(1), seed=3)
    np.testing.assert_array_equal(draw(key=jax.random.key(2), seed=3), first)
    self.assertNotEqual(draw(seed=4).tolist(), first.tolist())

  def test_draws_are_uniform_over_the_set(self):
    draw = lambda key: selection.draw(
      selection.Selection(poison_ratio=0.25), key, LABELS
    )
    kinds = jax.vmap(draw)(jax.random.split(jax.random.key(0), 400))
    hits = np.asarray(kinds).mean(axis=0)
    # 400 draws at 0.25: a standard deviation of 0.0217 per example.
    self.assertLess(np.abs(hits - 0.25).max(), 5 * 0.0217)

  def test_vmap_over_seeds_equals_loop(self):
    draw = lambda key: selection.draw(selection.Selection(), key, LABELS)
    seeds = jax.random.split(jax.random.key(0), 3)
    looped = np.stack([draw(key) for key in seeds])
    np.testing.assert_array_equal(jax.vmap(draw)(seeds), looped)


class PublishedIndicesTest(parameterized.TestCase):
  @parameterized.product(
    mode=('all2one', 'all2all', 'cleanlabel'), ratio=(0.1, 0.05, 0.01, 0.0025)
  )
  def test_indices_equal_the_reference(self, mode, ratio):
    got = chosen(
      reference()['labels'],
      poison_ratio=ratio,
      only_class=0 if mode == 'cleanlabel' else None,
      index_rng='numpy_legacy',
    )
    want = reference()[f'{mode}_ratio{ratio}_draw_order']
    np.testing.assert_array_equal(got, np.sort(want))

  def test_explicit_count_equals_the_reference(self):
    got = chosen(reference()['labels'], num_poison=7, index_rng='numpy_legacy')
    want = np.flatnonzero(reference()['all2one_pnum7_indicator'])
    np.testing.assert_array_equal(got, want)

  def test_infeasible_reference_request_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'has only 130 of the 1000'):
      chosen(
        reference()['labels'],
        poison_ratio=0.2,
        only_class=0,
        index_rng='numpy_legacy',
      )

  @parameterized.parameters(
    (50000, 5000, [11841, 19602, 45519, 25747, 42642], 126459119),
    (50000, 2500, [11841, 19602, 45519, 25747, 42642], 63054358),
    (50000, 500, [11841, 19602, 45519, 25747, 42642], 12671404),
    (50000, 250, [11841, 19602, 45519, 25747, 42642], 6486030),
    (50000, 50, [11841, 19602, 45519, 25747, 42642], 1255322),
    (5000, 2500, [398, 3833, 4836, 4572, 636], 6237174),
    (5000, 500, [398, 3833, 4836, 4572, 636], 1272556),
    (5000, 250, [398, 3833, 4836, 4572, 636], 620185),
    (5000, 50, [398, 3833, 4836, 4572, 636], 124701),
    (39209, 3921, [19138, 21703, 32087, 19762, 13970], None),
  )
  def test_first_entries_and_sums(self, size, number, first, total):
    got = chosen(
      np.zeros(size, int), num_poison=number, index_rng='numpy_legacy'
    )
    self.assertContainsSubset(first, got)
    if total is not None:
      self.assertEqual(got.sum(), total)
    five = chosen(np.zeros(size, int), num_poison=5, index_rng='numpy_legacy')
    self.assertEqual(five.tolist(), sorted(first))

  def test_clean_label_sum_on_a_class_among_others(self):
    labels = np.repeat(np.arange(10), 5000)
    got = chosen(
      labels, poison_ratio=0.01, only_class=0, index_rng='numpy_legacy'
    )
    self.assertEqual(got.sum(), 1272556)


if __name__ == '__main__':
  absltest.main()
