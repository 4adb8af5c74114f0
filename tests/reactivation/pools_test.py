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

  def test_errors_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'pool_size=20 or fewer'):
      pools.clean(KEY, attack(), IMAGES, LABELS, 21)
    with self.assertRaisesRegex(TypeError, 'uint8'):
      pools.clean(KEY, attack(), IMAGES / 255, LABELS, 5)
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      pools.clean(np.zeros(2, np.uint32), attack(), IMAGES, LABELS, 5)
