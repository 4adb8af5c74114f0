"""Which rows make up which step, and what a batch looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import training, types


def _phase(**fields):
  base = dict(name='p', init=None, step=None, finish=None, reads='clean')
  return types.Phase(**{**base, **fields})


class BatchRowsTest(parameterized.TestCase):
  @parameterized.product(length=(1, 3, 4, 8, 11), start=(0, 1, 5))
  def test_rows_do_not_depend_on_chunking(self, length, start):
    key = jax.random.key(0)
    whole = training.batch_rows(key, 0, 24, 10, 3, 4)
    part = training.batch_rows(key, start, length, 10, 3, 4)
    np.testing.assert_array_equal(part, whole[start : start + length])

  def test_dropped_epoch_visits_each_row_at_most_once(self):
    rows = np.asarray(training.batch_rows(jax.random.key(1), 0, 3, 10, 3, 3))
    self.assertLen(set(rows.ravel().tolist()), 9)

  def test_wrapped_epoch_visits_every_row_and_repeats_its_beginning(self):
    rows = np.asarray(training.batch_rows(jax.random.key(1), 0, 4, 10, 3, 4))
    flat = rows.ravel()
    self.assertEqual(set(flat[:10].tolist()), set(range(10)))
    np.testing.assert_array_equal(flat[10:], flat[:2])

  def test_epochs_differ(self):
    rows = np.asarray(training.batch_rows(jax.random.key(1), 0, 8, 16, 4, 4))
    self.assertFalse(np.array_equal(rows[:4], rows[4:]))

  def test_traced_start_gives_the_same_rows(self):
    key = jax.random.key(2)
    fn = jax.jit(lambda s: training.batch_rows(key, s, 3, 10, 3, 3))
    np.testing.assert_array_equal(
      fn(4), training.batch_rows(key, 4, 3, 10, 3, 3)
    )

  def test_steps_per_epoch(self):
    self.assertEqual(training.steps_per_epoch(_phase(batch_size=3), 10), 3)
    wrap = _phase(batch_size=3, drop_last=False)
    self.assertEqual(training.steps_per_epoch(wrap, 10), 4)

  def test_small_epoch_is_one_batch(self):
    self.assertEqual(training.steps_per_epoch(_phase(batch_size=256), 71), 1)


class FetchTest(parameterized.TestCase):
  def _feed(self):
    images = np.arange(5 * 2 * 2 * 1, dtype=np.uint8).reshape(5, 2, 2, 1)
    return training.make_feed(images, np.arange(5), index=[4, 1, 2])

  def test_batch_is_gathered_through_the_index_and_scaled(self):
    batch = training.fetch(
      self._feed(), jnp.asarray([0, 2]), jax.random.key(0), None
    )
    np.testing.assert_array_equal(batch['index'], [4, 2])
    np.testing.assert_array_equal(batch['label'], [4, 2])
    np.testing.assert_allclose(
      batch['image'][0].ravel(), np.arange(16, 20) / 255, rtol=1e-6
    )

  def test_augmentation_key_belongs_to_the_example(self):
    noise = lambda images, ks: jax.vmap(
      lambda i, k: i + jax.random.uniform(k, i.shape)
    )(images, ks)
    key = jax.random.key(0)
    both = training.fetch(self._feed(), jnp.asarray([0, 2]), key, noise)
    one = training.fetch(self._feed(), jnp.asarray([2]), key, noise)
    np.testing.assert_array_equal(both['image'][1], one['image'][0])

  def test_lengths_must_agree(self):
    with pytest.raises(ValueError, match='5 images but 4 labels'):
      training.make_feed(np.zeros((5, 2, 2, 1), np.uint8), np.zeros(4))

  def test_empty_feed_is_refused(self):
    with pytest.raises(ValueError, match='at least one row'):
      training.make_feed(
        np.zeros((5, 2, 2, 1), np.uint8), np.zeros(5), index=[]
      )
