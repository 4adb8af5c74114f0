import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, keys, types
from tests.eval import linear

SPEC = linear.spec(shape=(4, 4, 3), num_classes=4)
NET = linear.classifier(SPEC)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 255, (40, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.int32) % 4
KEY = jax.random.key(0)

WHITE = types.Trigger(
  init=lambda key: {'level': jax.random.uniform(key)},
  apply=lambda params, image, key: jnp.ones_like(image),
  info='white',
)
NOISE = types.Trigger(
  init=lambda key: {},
  apply=lambda params, image, key: jax.random.uniform(key, image.shape),
  info='noise',
)


def make(trigger=WHITE, **kwargs):
  hp = attacks.PoisonHParams(**{'poison_ratio': 0.25} | kwargs)
  return attacks.from_hparams(trigger, SPEC, hp)


def batch(index):
  index = np.asarray(index)
  return {
    'image': jnp.asarray(IMAGES[index]) / 255,
    'label': jnp.asarray(LABELS[index]),
    'index': jnp.asarray(index),
    'mask': jnp.ones(len(index), bool),
  }


class PoisoningTest(parameterized.TestCase):
  @parameterized.parameters(
    ('all2one', [0, 0, 0, 0]), ('all2all', [1, 2, 3, 0])
  )
  def test_only_poisoned_rows_change(self, label_mode, relabelled):
    attack = make(label_mode=label_mode)
    state = attack.init(KEY, IMAGES, LABELS)
    clean = batch(np.arange(40))
    got = attack.poison(state, clean, KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 10)
    np.testing.assert_array_equal(got['image'][poisoned], 1)
    np.testing.assert_array_equal(
      got['label'][poisoned], np.array(relabelled)[LABELS[poisoned]]
    )
    for name in ('image', 'label'):
      np.testing.assert_array_equal(
        got[name][~poisoned], clean[name][~poisoned]
      )
    np.testing.assert_array_equal(got['kind'], state.kind)
    np.testing.assert_array_equal(got['mask'], clean['mask'])

  def test_rows_are_found_by_index_not_by_position(self):
    attack = make()
    state = attack.init(KEY, IMAGES, LABELS)
    order = RNG.permutation(40)[:16]
    got = attack.poison(state, batch(order), KEY)
    np.testing.assert_array_equal(got['kind'], np.asarray(state.kind)[order])

  def test_examples_outside_of_the_training_set_are_clean(self):
    attack = make(poison_ratio=1.0)
    state = attack.init(KEY, IMAGES, LABELS)
    stranger = batch([3, 4]) | {'index': jnp.array([3, 400])}
    got = attack.poison(state, stranger, KEY)
    self.assertEqual(got['kind'].tolist(), [types.POISONED, types.CLEAN])

  def test_clean_label_keeps_labels_and_poisons_the_target_class(self):
    attack = make(clean_label=True, target_label=2, poison_ratio=0.1)
    state = attack.init(KEY, IMAGES, LABELS)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(set(LABELS[poisoned]), {2})
    got = attack.poison(state, batch(np.arange(40)), KEY)
    np.testing.assert_array_equal(got['label'], LABELS)
    np.testing.assert_array_equal(got['image'][poisoned], 1)
    self.assertEqual(attack.relabel(jnp.array([0, 3])).tolist(), [2, 2])
    self.assertTrue(attack.info.clean_label)

  def test_clean_label_refuses_all2all(self):
    with self.assertRaisesRegex(ValueError, "use 'all2one'"):
      make(clean_label=True, label_mode='all2all')

  def test_clean_label_refuses_another_class_than_the_target(self):
    with self.assertRaisesRegex(ValueError, 'poisons its target class'):
      attacks.from_trigger(
        WHITE,
        attacks.all2one(0, 4),
        attacks.Selection(only_class=1),
        SPEC.image_shape,
      )

  def test_test_trigger_shares_the_parameters(self):
    black = WHITE._replace(
      init=None,
      apply=lambda params, image, key: image * 0 + params['level'],
    )
    attack = attacks.from_trigger(
      WHITE,
      attacks.all2one(0, 4),
      attacks.Selection(poison_ratio=1.0),
      SPEC.image_shape,
      test_trigger=black,
    )
    state = attack.init(KEY, IMAGES, LABELS)
    clean = batch(np.arange(4))
    stamped = attack.stamp(state, clean['image'], KEY, clean['index'])
    np.testing.assert_array_equal(
      stamped, jnp.full((4, 4, 4, 3), state.trigger['level'])
    )
    poisoned = attack.poison(state, clean, KEY)['image']
    np.testing.assert_array_equal(poisoned, 1)

  def test_stamp_draws_by_example_not_by_batch(self):
    attack = make(NOISE)
    state = attack.init(KEY, IMAGES, LABELS)
    order = np.array([5, 2, 9])
    image = batch(order)['image']
    together = attack.stamp(state, image, KEY, order)
    alone = attack.stamp(state, image[1:2], KEY, order[1:2])
    np.testing.assert_array_equal(together[1:2], alone)
    want = jax.random.uniform(keys.per_example(KEY, order)[0], (4, 4, 3))
    np.testing.assert_allclose(together[0], want, atol=1e-7)

  def test_update_is_the_identity(self):
    attack = make()
    state = attack.init(KEY, IMAGES, LABELS)
    model = NET.init(KEY)
    got, metrics = attack.update(state, NET, model, batch([0]), KEY)
    self.assertIs(got, state)
    self.assertEqual(metrics, {})

  def test_objective_is_the_mean_cross_entropy_in_train_mode(self):
    attack = make()
    state = attack.init(KEY, IMAGES, LABELS)
    model = NET.init(KEY)
    data = batch(np.arange(8))
    loss, (logits, after) = attack.objective(state, NET, model, data, KEY)
    z = np.asarray(logits, np.float64)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    want = -log_p[np.arange(8), LABELS[:8]].mean()
    self.assertAlmostEqual(float(loss), want, places=5)
    self.assertEqual(float(after.batch_stats['passes']), 1)

  def test_info_says_what_was_asked_for(self):
    info = make(label_mode='all2all', poison_ratio=0.05).info
    self.assertEqual(
      dataclasses.asdict(info),
      {
        'name': 'white',
        'label_mode': 'all2all',
        'target_label': None,
        'poison_ratio': 0.05,
        'clean_label': False,
        'order': 'poison_augment',
        'fixed_subset': True,
        'cover_ratio': None,
      },
    )
    self.assertIsNone(make(num_poison=3).info.poison_ratio)

  def test_hparams_are_all_static(self):
    self.assertEmpty(jax.tree.leaves(attacks.PoisonHParams()))

  def test_bytes_and_large_floats_are_refused(self):
    attack = make()
    state = attack.init(KEY, IMAGES, LABELS)
    with self.assertRaisesRegex(ValueError, r'divide uint8 by 255'):
      attack.stamp(state, jnp.full((1, 4, 4, 3), 255.0), KEY, jnp.arange(1))
    with self.assertRaisesRegex(TypeError, 'data.to_float'):
      attack.stamp(state, IMAGES[:1], KEY, jnp.arange(1))
    loud = batch([0]) | {'image': jnp.asarray(IMAGES[:1], jnp.float32)}
    with self.assertRaisesRegex(ValueError, r'\[0, 1\], got min'):
      attack.poison(state, loud, KEY)

  def test_images_of_another_shape_are_refused(self):
    attack = make()
    state = attack.init(KEY, IMAGES, LABELS)
    with self.assertRaisesRegex(ValueError, r'made for .*\(4, 4, 3\)'):
      attack.stamp(state, jnp.zeros((1, 8, 8, 3)), KEY, jnp.arange(1))
    with self.assertRaisesRegex(ValueError, 'DataSpec of these images'):
      attack.init(KEY, np.zeros((2, 8, 8, 3), np.uint8), LABELS[:2])

  def test_float_training_sets_and_missing_labels_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'uint8'):
      make().init(KEY, IMAGES / 255, LABELS)
    with self.assertRaisesRegex(ValueError, 'one per image'):
      make().init(KEY, IMAGES, LABELS[1:])

  @parameterized.parameters(
    ({'poison_ratio': 5}, 'use 0.05 for 5 %'),
    ({'target_label': 4}, 'labels are 0 … 3'),
    ({'label_mode': 'all2al'}, "Did you mean 'all2all'"),
    ({'index_rng': 'torch'}, 'numpy_legacy'),
    ({'num_poison': -1}, 'must not be negative'),
  )
  def test_bad_hparams_are_refused_when_the_attack_is_made(self, hp, cure):
    with self.assertRaisesRegex(ValueError, cure):
      make(**hp)


if __name__ == '__main__':
  absltest.main()
