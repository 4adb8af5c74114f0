import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import types
from bdjax.reactivation import controls, universal
from tests import small_nets

KEY = jax.random.key(0)
NUM = 30
IMAGES = small_nets.random_images(0, NUM, size=4)
LABELS = np.arange(NUM) % 3
TRIGGER = universal.trigger((4, 4, 3), 0.1, 'linf')


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
        inputs,
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
