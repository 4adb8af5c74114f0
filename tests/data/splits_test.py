import jax
import numpy as np
from absl.testing import parameterized

from bdjax import data
from bdjax.data import splits

KEY = jax.random.key(3)


def labels_of(num, classes):
  return np.random.default_rng(0).permutation(np.arange(num) % classes)


def split_of(labels):
  images = np.zeros((len(labels), 1, 1, 3), np.uint8)
  images[:, 0, 0, 0] = np.arange(len(labels)) % 256
  images[:, 0, 0, 1] = np.arange(len(labels)) // 256
  return data.Split(images, np.asarray(labels, np.int32))


def positions(split):
  return split.images[:, 0, 0, 0] + 256 * split.images[:, 0, 0, 1].astype(int)


class ReserveCleanTest(parameterized.TestCase):
  @parameterized.parameters(
    (50_000, 10, 2_500, 250),
    (50_000, 100, 2_500, 25),
    (39_209, 43, 1_960, 45),
    (100_000, 200, 5_000, 25),
  )
  def test_counts_of_the_specification(self, num, classes, total, per_class):
    labels = labels_of(num, classes)
    random = data.reserve_clean(KEY, labels, 0.05)
    self.assertLen(random, total)
    balanced = data.reserve_clean(KEY, labels, 0.05, sampler='class_balanced')
    np.testing.assert_array_equal(
      np.bincount(labels[balanced], minlength=classes), per_class
    )

  @parameterized.parameters(*splits.SAMPLERS)
  def test_positions_are_distinct_ascending_and_repeatable(self, sampler):
    labels = labels_of(1000, 10)
    index = data.reserve_clean(KEY, labels, 0.1, sampler=sampler)
    self.assertEqual(index.dtype, np.int32)
    self.assertTrue(np.all(np.diff(index) > 0))
    again = data.reserve_clean(KEY, labels, 0.1, sampler=sampler)
    np.testing.assert_array_equal(index, again)
    other = data.reserve_clean(jax.random.key(4), labels, 0.1, sampler=sampler)
    self.assertNotEqual(index.tolist(), other.tolist())

  @parameterized.parameters(*splits.SAMPLERS)
  def test_a_smaller_reserve_is_part_of_a_larger_one(self, sampler):
    labels = labels_of(1000, 10)
    small, large = (
      set(data.reserve_clean(KEY, labels, r, sampler=sampler).tolist())
      for r in (0.05, 0.1)
    )
    self.assertLess(small, large)

  def test_rounding_error_does_not_cost_an_example(self):
    self.assertLess(100 * 0.29, 29)
    self.assertLen(data.reserve_clean(KEY, labels_of(100, 4), 0.29), 29)

  def test_ratio_one_takes_everything(self):
    index = data.reserve_clean(KEY, labels_of(20, 4), 1.0)
    np.testing.assert_array_equal(index, np.arange(20))

  @parameterized.parameters(
    (dict(ratio=5), 'use 0.05 for 5 %'),
    (dict(ratio=0.0), 'not in (0, 1]'),
    (dict(ratio=0.005), 'use at least 0.01'),
    (dict(ratio=0.03, sampler='class_balanced'), 'use at least 0.04'),
    (dict(ratio=0.1, sampler='balanced'), "mean 'class_balanced'"),
  )
  def test_mistakes_are_explained(self, arguments, cure):
    with self.assertRaises(ValueError) as caught:
      data.reserve_clean(KEY, labels_of(100, 4), **arguments)
    self.assertIn(cure, str(caught.exception))

  def test_a_rare_class_is_named_with_the_largest_ratio(self):
    labels = np.repeat([0, 1], [90, 10])
    with self.assertRaisesRegex(ValueError, 'class 1 has 10; .* up to 0.2 '):
      data.reserve_clean(KEY, labels, 0.5, sampler='class_balanced')
    index = data.reserve_clean(KEY, labels, 0.2, sampler='class_balanced')
    np.testing.assert_array_equal(np.bincount(labels[index]), [10, 10])

  def test_legacy_keys_are_refused(self):
    with self.assertRaisesRegex(TypeError, r'jax\.random\.key\(seed\)'):
      data.reserve_clean(np.zeros(2, np.uint32), labels_of(20, 4), 0.5)

  def test_exclude_is_the_complement(self):
    index = data.reserve_clean(KEY, labels_of(50, 5), 0.2)
    rest = data.exclude(50, index)
    self.assertEqual(rest.dtype, np.int32)
    self.assertEmpty(set(index) & set(rest))
    self.assertEqual(sorted([*index, *rest]), list(range(50)))


class SubsetTest(parameterized.TestCase):
  def test_subsets_are_nested_and_keep_the_order(self):
    split = split_of(labels_of(600, 7))
    previous = set()
    for n in (1, 10, 99, 100, 599, 600):
      part = data.subset(split, n)
      self.assertLen(part.labels, n)
      found = positions(part)
      self.assertTrue(np.all(np.diff(found) > 0))
      np.testing.assert_array_equal(part.labels, split.labels[found])
      self.assertLess(previous, set(found.tolist()))
      previous = set(found.tolist())

  @parameterized.parameters(10, 37, 205)
  def test_balanced_classes_stay_balanced(self, n):
    counts = np.bincount(data.subset(split_of(labels_of(400, 10)), n).labels)
    self.assertLen(counts, 10)
    self.assertLessEqual(counts.max() - counts.min(), 1)

  def test_unequal_classes_keep_their_shares(self):
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    part = data.subset(split_of(labels), 100)
    np.testing.assert_allclose(np.bincount(part.labels), [80, 15, 5], atol=1)

  def test_the_whole_split_is_returned_as_it_is(self):
    split = split_of(labels_of(20, 4))
    self.assertIs(data.subset(split, None), split)
    self.assertIs(data.subset(split, 20), split)

  @parameterized.parameters(0, -1, 21)
  def test_sizes_out_of_range_are_refused(self, n):
    with self.assertRaisesRegex(ValueError, f'num_test={n}.*1 … 20'):
      data.subset(split_of(labels_of(20, 4)), n, name='num_test')

  def test_the_chosen_examples_never_change(self):
    part = data.subset(split_of(np.arange(40) % 4), 6)
    np.testing.assert_array_equal(positions(part), [4, 15, 20, 22, 25, 29])


class CheckedTest(parameterized.TestCase):
  @parameterized.parameters(
    (np.zeros((2, 8, 8, 3), np.float32), [0, 1], TypeError, 'np.round(255'),
    (np.zeros((2, 8, 8), np.uint8), [0, 1], ValueError, 'x[..., None]'),
    (np.zeros((0, 8, 8, 3), np.uint8), [], ValueError, 'N > 0'),
    (np.zeros((2, 3, 8, 8), np.uint8), [0, 1], ValueError, 'x.transpose(0, 2'),
    (np.zeros((2, 9, 9, 3), np.uint8), [0, 1], ValueError, "'arrays'"),
    (np.zeros((2, 8, 8, 3), np.uint8), [0.0, 1.0], TypeError, 'astype'),
    (np.zeros((2, 8, 8, 3), np.uint8), [0, 1, 2], ValueError, '2 images'),
    (np.zeros((2, 8, 8, 3), np.uint8), [1, 4], ValueError, 'from 0'),
    (np.zeros((2, 8, 8, 3), np.uint8), [-1, 0], ValueError, 'from 0'),
  )
  def test_faults_come_with_a_cure(self, images, labels, error, cure):
    labels = np.asarray(labels, None if labels else np.int32)
    with self.assertRaises(error) as caught:
      splits.checked(images, labels, source='here', spec=data.spec('synthetic'))
    self.assertIn(cure, str(caught.exception))
    self.assertStartsWith(str(caught.exception), 'here: ')

  def test_labels_become_int32(self):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    labels = np.array([3, 0], np.uint8)
    self.assertEqual(
      splits.checked(images, labels, source='x').labels.dtype, np.int32
    )
