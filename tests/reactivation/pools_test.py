import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import types
from bdjax.reactivation import pools
from tests import small_nets

KEY = jax.random.key(0)
NUM = 30
IMAGES = small_nets.random_images(0, NUM, size=4)
LABELS = np.arange(NUM) % 3


def stamp(state, images, key, index):
  """A trigger with randomness of its own: one gray value per example."""
  del state
  own = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
  gray = jax.vmap(lambda k: jax.random.uniform(k))(own)
  return images.at[:, 0, 0].set(gray[:, None])


def attack(relabel=jnp.zeros_like):
  info = types.AttackInfo(
    name='toy', label_mode='all2one', target_label=0, poison_ratio=0.1
  )
  nothing = lambda *_: None
  return types.Attack(nothing, nothing, stamp, relabel, nothing, nothing, info)


class PoolTest(parameterized.TestCase):
  def test_clean_pool_is_clean_and_leaves_the_target_class_out(self):
    pool = pools.clean(KEY, attack(), IMAGES, LABELS, 12)
    np.testing.assert_array_equal(pool.images, IMAGES[pool.index])
    self.assertTrue(np.all(LABELS[pool.index] != 0))
    np.testing.assert_array_equal(pool.labels, 0)
    self.assertLen(set(pool.index.tolist()), 12)
    self.assertEqual(
      (pool.images.dtype, pool.labels.dtype), (np.uint8, np.int32)
    )

  def test_both_pools_hold_the_same_images(self):
    clean = pools.clean(KEY, attack(), IMAGES, LABELS, 12)
    triggered = pools.triggered(KEY, attack(), None, IMAGES, LABELS, 12)
    np.testing.assert_array_equal(triggered.index, clean.index)
    np.testing.assert_array_equal(triggered.labels, clean.labels)
    np.testing.assert_array_equal(triggered.images[:, 1:], clean.images[:, 1:])
    patch = triggered.images[:, 0, 0]
    np.testing.assert_array_equal(patch, patch[:, :1].repeat(3, axis=1))
    self.assertGreater(len(set(patch[:, 0].tolist())), 6)

  def test_targets_may_differ_by_image(self):
    shifted = attack(relabel=lambda y: (y + 1) % 3)
    pool = pools.clean(KEY, shifted, IMAGES, LABELS, NUM)
    np.testing.assert_array_equal(pool.index, np.arange(NUM))
    np.testing.assert_array_equal(pool.labels, (LABELS + 1) % 3)

  def test_key_decides(self):
    draw = lambda seed: (
      pools.clean(jax.random.key(seed), attack(), IMAGES, LABELS, 10).index
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertFalse(np.array_equal(draw(0), draw(1)))

  def test_a_target_that_is_the_source_class_is_refused(self):
    message = "'toy' leads each of the 10 images to its own class"
    with self.assertRaisesRegex(ValueError, message):
      pools.clean(KEY, attack(), IMAGES[:10], np.zeros(10, int), 5)
    with self.assertRaisesRegex(ValueError, 'than target_label=0'):
      pools.triggered(KEY, attack(), None, IMAGES[:10], np.zeros(10, int), 5)

  def test_errors_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'pool_size=20 or fewer'):
      pools.clean(KEY, attack(), IMAGES, LABELS, 21)
    with self.assertRaisesRegex(TypeError, 'uint8'):
      pools.clean(KEY, attack(), IMAGES / 255, LABELS, 5)
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      pools.clean(np.zeros(2, np.uint32), attack(), IMAGES, LABELS, 5)


class RetuningPoolTest(parameterized.TestCase):
  def draw(self, poison_num, seed=0, ratio=0.4, how=None):
    return pools.retuning(
      jax.random.key(seed),
      how or attack(),
      None,
      IMAGES,
      LABELS,
      split_ratio=ratio,
      poison_num=poison_num,
    )

  @parameterized.parameters(0, 1, 5, 12)
  def test_row20_size_is_constant_for_any_poison_num(self, poison_num):
    pool = self.draw(poison_num)
    self.assertEqual(pool.images.shape, (12, 4, 4, 3))
    self.assertEqual((pool.labels.shape, pool.index.shape), ((12,), (12,)))
    self.assertEqual(
      (pool.images.dtype, pool.labels.dtype, pool.index.dtype),
      (np.uint8, np.int32, np.int32),
    )

  def test_first_rows_are_triggered_and_labelled_with_the_target(self):
    pool = self.draw(5)
    original, truth = IMAGES[pool.index], LABELS[pool.index]
    np.testing.assert_array_equal(pool.labels[:5], 0)
    self.assertTrue(np.all(truth[:5] != 0))
    for row in range(5):
      np.testing.assert_array_equal(pool.images[row, 1:], original[row, 1:])
      self.assertLen(set(pool.images[row, 0, 0].tolist()), 1)
    np.testing.assert_array_equal(pool.images[5:], original[5:])
    np.testing.assert_array_equal(pool.labels[5:], truth[5:])
    self.assertLen(set(pool.index[5:].tolist()), 7)

  def test_triggered_rows_are_those_of_a_triggered_pool(self):
    pool = self.draw(5)
    same = pools.triggered(KEY, attack(), None, IMAGES, LABELS, 5)
    for one, two in zip(pool, same, strict=True):
      np.testing.assert_array_equal(one[:5], two)

  def test_targets_may_differ_by_image(self):
    pool = self.draw(6, how=attack(relabel=lambda y: (y + 1) % 3))
    truth = LABELS[pool.index]
    np.testing.assert_array_equal(pool.labels[:6], (truth[:6] + 1) % 3)
    np.testing.assert_array_equal(pool.labels[6:], truth[6:])

  def test_more_poison_replaces_clean_images(self):
    none, some = self.draw(0), self.draw(5)
    self.assertContainsSubset(some.index[5:].tolist(), none.index.tolist())
    self.assertContainsSubset(
      self.draw(3).index[:3].tolist(), some.index[:5].tolist()
    )

  def test_clean_rows_are_drawn_from_all_classes(self):
    whole = self.draw(0, ratio=1.0)
    np.testing.assert_array_equal(whole.index, np.arange(NUM))
    np.testing.assert_array_equal(whole.labels, LABELS)
    one, other = self.draw(0), self.draw(0, seed=1)
    self.assertFalse(np.array_equal(one.index, other.index))

  def test_size_is_rounded(self):
    self.assertLen(self.draw(0, ratio=0.25).labels, 8)  # 7.5
    self.assertLen(self.draw(0, ratio=0.24).labels, 7)  # 7.2

  @parameterized.parameters(
    (dict(poison_num=13), 'poison_num=12 or fewer, or raise split_ratio'),
    (dict(poison_num=21, ratio=1.0), 'poison_num=20 or fewer'),
    (dict(poison_num=-1), '`poison_num=-1` must not be negative'),
    (dict(poison_num=0, ratio=0.01), 'split_ratio=0.033 or more'),
    (dict(poison_num=0, ratio=2.0), '0.02 for 2 %'),
  )
  def test_errors_name_the_cure(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      self.draw(**values)

  def test_wrong_types_are_refused(self):
    draw = lambda key, images: pools.retuning(
      key, attack(), None, images, LABELS, split_ratio=0.4, poison_num=0
    )
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      draw(np.zeros(2, np.uint32), IMAGES)
    with self.assertRaisesRegex(TypeError, 'uint8'):
      draw(KEY, IMAGES / 255)


class QraPoolTest(parameterized.TestCase):
  def draw(self, num_clean=7, num_poisoned=6, seed=0, how=None):
    return pools.qra(
      jax.random.key(seed),
      how or attack(),
      None,
      IMAGES,
      LABELS,
      num_clean=num_clean,
      num_poisoned=num_poisoned,
    )

  def test_clean_then_triggered_all_with_true_labels(self):
    pool = self.draw()
    original = IMAGES[pool.index]
    np.testing.assert_array_equal(pool.labels, LABELS[pool.index])
    np.testing.assert_array_equal(pool.images[:7], original[:7])
    np.testing.assert_array_equal(pool.images[7:, 1:], original[7:, 1:])
    patch = pool.images[7:, 0, 0]
    np.testing.assert_array_equal(patch, patch[:, :1].repeat(3, axis=1))
    self.assertTrue(np.all(pool.labels[7:] != 0))
    self.assertEqual(
      (pool.images.dtype, pool.labels.dtype, pool.index.dtype),
      (np.uint8, np.int32, np.int32),
    )

  def test_clean_images_are_of_any_class(self):
    pool = self.draw(num_clean=NUM)
    np.testing.assert_array_equal(pool.index[:NUM], np.arange(NUM))

  def test_all_to_all_leaves_no_class_out(self):
    shifted = attack(relabel=lambda y: (y + 1) % 3)
    pool = self.draw(num_poisoned=NUM, how=shifted)
    np.testing.assert_array_equal(pool.labels[7:], LABELS)

  def test_key_decides(self):
    np.testing.assert_array_equal(self.draw().index, self.draw().index)
    self.assertFalse(np.array_equal(self.draw().index, self.draw(seed=1).index))

  @parameterized.parameters(
    (dict(num_clean=31), 'num_clean=30 or fewer'),
    (dict(num_poisoned=21), 'num_poisoned=20 or fewer'),
    (dict(num_clean=0), '`num_clean=0` must be positive'),
    (dict(num_poisoned=0), '`num_poisoned=0` must be positive'),
  )
  def test_errors_name_the_cure(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      self.draw(**values)
