import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import types
from bdjax.reactivation import controls
from bdjax.reactivation.white_box import perturbation_trigger
from tests import small_nets

KEY = jax.random.key(0)
NUM = 30
IMAGES = small_nets.random_images(0, NUM, size=4)
LABELS = np.arange(NUM) % 3
TRIGGER = perturbation_trigger((4, 4, 3), 0.1, 'linf')


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
    pool = controls.clean_pool(KEY, attack(), IMAGES, LABELS, 12)
    np.testing.assert_array_equal(pool.images, IMAGES[pool.index])
    self.assertTrue(np.all(LABELS[pool.index] != 0))
    np.testing.assert_array_equal(pool.labels, 0)
    self.assertLen(set(pool.index.tolist()), 12)
    self.assertEqual(
      (pool.images.dtype, pool.labels.dtype), (np.uint8, np.int32)
    )

  def test_both_pools_hold_the_same_images(self):
    clean = controls.clean_pool(KEY, attack(), IMAGES, LABELS, 12)
    triggered = controls.triggered_pool(KEY, attack(), None, IMAGES, LABELS, 12)
    np.testing.assert_array_equal(triggered.index, clean.index)
    np.testing.assert_array_equal(triggered.labels, clean.labels)
    np.testing.assert_array_equal(triggered.images[:, 1:], clean.images[:, 1:])
    patch = triggered.images[:, 0, 0]
    np.testing.assert_array_equal(patch, patch[:, :1].repeat(3, axis=1))
    self.assertGreater(len(set(patch[:, 0].tolist())), 6)

  def test_targets_may_differ_by_image(self):
    shifted = attack(relabel=lambda y: (y + 1) % 3)
    pool = controls.clean_pool(KEY, shifted, IMAGES, LABELS, NUM)
    np.testing.assert_array_equal(pool.index, np.arange(NUM))
    np.testing.assert_array_equal(pool.labels, (LABELS + 1) % 3)

  def test_key_decides(self):
    draw = lambda seed: (
      controls.clean_pool(
        jax.random.key(seed), attack(), IMAGES, LABELS, 10
      ).index
    )
    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertFalse(np.array_equal(draw(0), draw(1)))

  def test_errors_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'pool_size=20 or fewer'):
      controls.clean_pool(KEY, attack(), IMAGES, LABELS, 21)
    with self.assertRaisesRegex(TypeError, 'uint8'):
      controls.clean_pool(KEY, attack(), IMAGES / 255, LABELS, 5)
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      controls.clean_pool(np.zeros(2, np.uint32), attack(), IMAGES, LABELS, 5)


class GridTest(parameterized.TestCase):
  def test_two_by_three_without_repetition(self):
    cells = {(s.inputs, s.model) for s in controls.GRID}
    self.assertLen(cells, 6)
    self.assertLen({s.field for s in controls.GRID}, 6)

  def test_required_fields_of_a_record(self):
    self.assertEqual(
      {s.field: (s.inputs, s.model) for s in controls.REQUIRED},
      {
        'reactivated_asr': ('triggered', 'defended'),
        'control_clean_input_asr': ('clean', 'defended'),
        'control_clean_model_asr': ('triggered', 'clean'),
      },
    )

  def test_pool_of_a_setting(self):
    clean, triggered = (
      controls.pool_of(
        controls.Setting(inputs, 'defended', ''),
        KEY,
        attack(),
        None,
        IMAGES,
        LABELS,
        8,
      )
      for inputs in ('clean', 'triggered')
    )
    np.testing.assert_array_equal(clean.images, IMAGES[clean.index])
    self.assertTrue(np.any(triggered.images != clean.images))

  def test_gap(self):
    rates = {'reactivated_asr': 0.9, 'control_clean_input_asr': 0.25}
    self.assertAlmostEqual(controls.reactivation_gap(rates), 0.65)
    self.assertIsNone(controls.reactivation_gap({'reactivated_asr': 0.9}))


class StampTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.images = jnp.asarray(IMAGES[:6]) / 255
    self.index = jnp.arange(10, 16)
    self.stamp = lambda x, key, index: stamp(None, x, key, index)

  def test_perturbation_lies_on_top_of_the_trigger_and_is_clipped(self):
    delta = jnp.full((4, 4, 3), 0.3)
    both = controls.perturbed_stamp(self.stamp, TRIGGER, {'delta': delta})
    alone = self.stamp(self.images, KEY, self.index)
    np.testing.assert_allclose(
      both(self.images, KEY, self.index),
      np.clip(alone + 0.3, 0, 1),
      rtol=1e-6,
    )

  def test_zero_perturbation_changes_no_bit(self):
    zero = {'delta': jnp.zeros((4, 4, 3))}
    both = controls.perturbed_stamp(self.stamp, TRIGGER, zero)
    np.testing.assert_array_equal(
      both(self.images, KEY, self.index),
      self.stamp(self.images, KEY, self.index),
    )

  def test_control_on_clean_inputs_has_no_trigger(self):
    params = TRIGGER.init(KEY)
    only = controls.perturbed_stamp(None, TRIGGER, params)
    np.testing.assert_array_equal(
      only(self.images, KEY, self.index),
      jnp.clip(self.images + params['delta'][None], 0, 1),
    )

  def test_noise_is_bounded_and_belongs_to_the_example(self):
    same = lambda x, key, index: x
    noisy = controls.noisy_stamp(same, 0.06)
    gray = jnp.full_like(self.images, 0.5)
    one = noisy(gray, KEY, self.index)
    self.assertLessEqual(float(jnp.abs(one - gray).max()), 0.06 + 1e-6)
    self.assertGreater(float(jnp.abs(one - gray).max()), 0.05)
    part = noisy(gray[2:4], KEY, self.index[2:4])
    np.testing.assert_array_equal(part, one[2:4])
    none = controls.noisy_stamp(same, 0.0)(self.images, KEY, self.index)
    np.testing.assert_array_equal(none, self.images)
