"""Plans: steps, epochs and feeds of a phase."""

import numpy as np
from absl.testing import parameterized

from bdjax import training, types
from bdjax.training import plan as planning


def phase(**fields):
  base = dict(name='p', init=None, step=None, finish=None, reads='clean')
  return types.Phase(**base | fields)


def feed(n, first=0):
  images = np.zeros((first + n, 1, 1, 1), np.uint8)
  index = np.arange(first, first + n)
  return training.make_feed(images, np.zeros(first + n), index)


class PlanTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(num_epochs=2, batch_size=3), (6, 2, 3, 3, 10)),
    (dict(num_epochs=2, batch_size=3, drop_last=False), (8, 2, 4, 3, 10)),
    (dict(num_steps=7, batch_size=3), (7, 3, 3, 3, 10)),
    (dict(num_steps=1, batch_size=256), (1, 1, 1, 10, 10)),
    (dict(batch_size=3), (0, 0, 3, 3, 10)),
  )
  def test_lengths(self, fields, want):
    self.assertEqual(tuple(planning.plan(phase(**fields), feed(10))), want)

  def test_two_lengths_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'give one of them'):
      planning.plan(phase(num_steps=1, num_epochs=1), None)


class FeedOfTest(parameterized.TestCase):
  @parameterized.parameters(('clean_fit', 0), ('clean_val', 1))
  def test_parts_of_the_clean_set_are_derived(self, reads, i):
    clean = feed(10)
    got = planning.feed_of(phase(reads=reads, batch_size=1), {'clean': clean})
    want = training.split_feed(clean)[i]
    np.testing.assert_array_equal(got.index, want.index)

  @parameterized.parameters('clean_fit', 'clean_val')
  def test_parts_that_are_given_are_taken(self, reads):
    feeds = {'clean': feed(10), reads: feed(3, first=20)}
    got = planning.feed_of(phase(reads=reads, batch_size=1), feeds)
    np.testing.assert_array_equal(got.index, [20, 21, 22])

  def test_parts_do_not_change_the_whole(self):
    feeds = {'clean': feed(10)}
    planning.feed_of(phase(reads='clean_val', batch_size=1), feeds)
    self.assertEqual(set(feeds), {'clean'})

  def test_reading_nothing_needs_no_feed(self):
    self.assertIsNone(planning.feed_of(phase(reads='none'), {}))

  def test_a_missing_feed_is_named(self):
    with self.assertRaisesRegex(ValueError, "reads 'clean_val'.*are \\['train"):
      planning.feed_of(phase(reads='clean_val'), {'train': feed(2)})

  def test_a_batch_size_is_needed(self):
    with self.assertRaisesRegex(ValueError, 'at least 1'):
      planning.feed_of(phase(), {'clean': feed(2)})
