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

  def test_mask_is_handed_on_and_all_true_without_one(self):
    rows, key = jnp.asarray([0, 2]), jax.random.key(0)
    batch = training.fetch(self._feed(), rows, key, None)
    np.testing.assert_array_equal(batch['mask'], [True, True])
    mask = jnp.asarray([True, False])
    batch = training.fetch(self._feed(), rows, key, None, mask)
    np.testing.assert_array_equal(batch['mask'], mask)


class MaskTest(parameterized.TestCase):
  @parameterized.product(n=(5, 6, 7), size=(2, 3, 16), drop_last=(True, False))
  def test_counts_every_row_of_an_epoch_at_most_once(self, n, size, drop_last):
    """Masked counts per row over two epochs, through the loop itself."""

    def step(seen, batch, clock):
      del clock
      return seen.at[batch['index']].add(batch['mask'].astype(jnp.int32)), {
        'num': jnp.sum(batch['mask'])
      }

    phase = _phase(
      init=lambda key, carry: jnp.zeros(n, jnp.int32),
      step=step,
      finish=lambda seen: types.Carry(model=None, extra=seen),
      num_epochs=2,
      batch_size=size,
      drop_last=drop_last,
    )
    feed = training.make_feed(np.zeros((n, 1, 1, 1), np.uint8), np.zeros(n))
    carry, metrics = training.run_phases(
      (phase,),
      types.Carry(model=None, extra={}),
      {'clean': feed},
      jax.random.key(0),
    )
    seen = np.asarray(carry.extra)
    per_epoch = n // min(size, n) * min(size, n) if drop_last else n
    self.assertEqual(int(metrics['p']['num'].sum()), 2 * per_epoch)
    self.assertLessEqual(seen.max(), 2)
    if not drop_last:
      np.testing.assert_array_equal(seen, np.full(n, 2))


class SplitFeedTest(parameterized.TestCase):
  def _feed(self, n, shape=()):
    images = np.zeros((2 * n, 1, 1, 1), np.uint8)
    index = np.broadcast_to(np.arange(0, 2 * n, 2), (*shape, n))
    return training.make_feed(images, np.zeros(2 * n), index)

  @parameterized.parameters((10, 2), (11, 2), (13, 3), (2, 1), (3, 1))
  def test_parts_are_disjoint_and_together_all_rows(self, n, held_out):
    feed = self._feed(n)
    fit, val = training.split_feed(feed)
    self.assertEqual(val.index.shape, (held_out,))
    together = np.concatenate([fit.index, val.index])
    np.testing.assert_array_equal(np.sort(together), feed.index)

  def test_choice_depends_on_the_number_of_rows_alone(self):
    one, other = (training.split_feed(self._feed(20))[1] for _ in range(2))
    np.testing.assert_array_equal(one.index, other.index)
    shifted = self._feed(20)
    shifted = training.Feed(
      images=shifted.images, labels=shifted.labels, index=shifted.index + 1
    )
    moved = training.split_feed(shifted)[1]
    np.testing.assert_array_equal(moved.index, one.index + 1)

  def test_is_not_the_beginning_nor_the_end(self):
    val = np.asarray(training.split_feed(self._feed(100))[1].index) // 2
    self.assertLess(val.min(), 20)
    self.assertGreater(val.max(), 80)

  @parameterized.parameters((0.5, 5), (0.0, 1), (1.0, 9))
  def test_both_parts_keep_one_row_at_least(self, share, held_out):
    fit, val = training.split_feed(self._feed(10), share)
    self.assertEqual(val.index.shape, (held_out,))
    self.assertEqual(fit.index.shape, (10 - held_out,))

  def test_leading_axes_are_split_alike(self):
    fit, val = training.split_feed(self._feed(10, (3,)))
    self.assertEqual((fit.index.shape, val.index.shape), ((3, 8), (3, 2)))
    np.testing.assert_array_equal(val.index[0], val.index[2])

  def test_a_single_row_is_refused(self):
    with pytest.raises(ValueError, match='raise the clean ratio'):
      training.split_feed(self._feed(1))

  @parameterized.parameters(-0.2, 20.0)
  def test_a_share_is_a_share(self, share):
    with pytest.raises(ValueError, match=r'is not in \[0, 1\]'):
      training.split_feed(self._feed(10), share)
