"""Exact purification: what it stamps, its step by hand, its messages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import data, defenses, training, types
from tests import toy
from tests.defenses import inverting, tuning

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
CLOCK, batch, model = inverting.CLOCK, inverting.batch, inverting.model
AUGMENT = data.augment_fn(toy.dataset().spec)
MARK = 7.0  # no pixel of an image


def white(images, key, index):
  del key, index
  return jnp.ones_like(images)


def same(images, key, index):
  del key, index
  return images


def make(net=NET, stamp=white, **values):
  base = dict(epochs=2, batch_size=NUM, lr=0.05)
  hp = defenses.ExactPurificationHParams(**base | values)
  return defenses.exact_purification(net, hp, stamp=stamp)


def seen(defense_of, num_steps=2, augment=None):
  """Images and labels that the network is tuned on, step by step.

  Args:
    defense_of: network -> defense.
    num_steps: how many of the defense's steps there are.
    augment: the data set's recipe.
  """
  found = []

  def apply(state, images, *, train=False, edits=None):
    del edits
    assert train
    jax.debug.callback(lambda x: found.append(np.array(x)), images)
    return jnp.zeros((len(images), 4)) * jnp.sum(state.params['w']), state

  net = types.Classifier(init=None, apply=apply, features=None, info=None)
  tuning.run(defense_of(net), tuning.weights(0.0), augment=augment)
  jax.effects_barrier()
  assert len(found) == num_steps, len(found)
  return found


def mark(images, key, index):
  """A corner pixel that no augmentation has seen."""
  del key, index
  return images.at[:, -1, -1].set(MARK)


class ExactPurificationTest(parameterized.TestCase):
  def test_defaults_are_the_specs(self):
    (phase,) = defenses.exact_purification(NET, stamp=white).phases
    self.assertEqual(
      (phase.name, phase.num_epochs, phase.batch_size, phase.reads),
      ('unlearn', 30, 128, 'clean'),
    )
    self.assertTrue(phase.augment)
    self.assertFalse(phase.drop_last)
    self.assertEqual(phase.grad_passes, 1)
    hp = defenses.ExactPurificationHParams()
    self.assertEqual((hp.lr, hp.momentum, hp.share), (0.01, 0.9, 0.2))

  @parameterized.parameters((0.2, 2), (0.5, 4), (1.0, 6))
  def test_share_of_a_batch_is_stamped(self, share, count):
    """⌊share·b⌋ + 1 images of 6, others as they were."""
    for images in seen(lambda net: make(net, mark, share=share)):
      stamped = np.all(images[:, -1, -1] == MARK, -1)
      self.assertEqual(stamped.sum(), count)
      self.assertFalse(np.any(images[~stamped] == MARK))

  def test_trigger_goes_on_after_augmentation_and_unshifted(self):
    """Were it on before, crops and flips would move the corner."""
    plain = seen(lambda net: make(net, same), augment=AUGMENT)
    found = seen(lambda net: make(net, mark, share=1.0), augment=AUGMENT)
    moved = False
    for before, images in zip(plain, found, strict=True):
      self.assertTrue(np.all(images[:, -1, -1] == MARK))
      images = images.copy()
      images[:, -1, -1] = before[:, -1, -1]
      np.testing.assert_array_equal(images, before)
      known = {image.tobytes() for image in np.asarray(batch()['image'])}
      moved |= any(image.tobytes() not in known for image in before)
    self.assertTrue(moved)

  def test_loss_by_hand(self):
    """True labels, and the best pair of stamped rows explains the loss."""
    (phase,) = make().phases
    state = phase.init(KEY, types.Carry(model=model(), extra={}))
    _, metrics = phase.step(state, batch(), CLOCK)
    images = np.asarray(batch()['image'])
    losses = []
    for i in range(NUM):
      for j in range(i):
        mixed = images.copy()
        mixed[[i, j]] = 1.0
        logits, _ = NET.apply(model(), jnp.asarray(mixed), train=True)
        losses.append(float(training.cross_entropy(logits, batch()['label'])))
    gaps = np.sort(np.abs(np.asarray(losses) - float(metrics['loss'])))
    self.assertLess(gaps[0], 1e-5)
    self.assertGreater(gaps[1], 1e-5)

  def test_trigger_gets_the_examples_of_the_feed(self):
    """A trigger that is a function of the index marks each by its own."""

    def by_index(images, key, index):
      del key
      return images + 10 * (1.0 + index[:, None, None, None])

    clean = tuning.IMAGES.astype(np.float32) / 255
    for images in seen(lambda net: make(net, by_index, share=1.0)):
      rows = np.rint(images.mean((1, 2, 3)) // 10 - 1).astype(int)
      self.assertEqual(set(rows), set(range(NUM)))
      shift = 10 * (1.0 + rows[:, None, None, None])
      np.testing.assert_allclose(images - shift, clean[rows], atol=1e-5)

  def test_momentum_sgd_on_a_quadratic(self):
    """Nesterov-free momentum and no decay, on ½ Σ aᵢ wᵢ²."""
    a, w = np.array([1.0, 0.5]), np.array([1.0, -0.8])
    values = dict(epochs=3, lr=0.1, momentum=0.9)
    defense = make(tuning.quadratic(a), same, **values)
    labels = np.zeros_like(tuning.LABELS)
    carry, _ = training.run_phases(
      defense.phases,
      types.Carry(model=tuning.weights(*w), extra={}),
      {'clean': training.make_feed(tuning.IMAGES, labels)},
      KEY,
    )
    v = np.zeros(2)
    for _ in range(3):
      v = 0.9 * v + a * w
      w = w - 0.1 * v
    np.testing.assert_allclose(carry.model.params['w'], w, rtol=1e-4)

  def test_a_trigger_that_changes_nothing_is_plain_fine_tuning(self):
    recipe = dict(epochs=2, batch_size=NUM, lr=0.05)
    hp = defenses.FtHParams(weight_decay=0.0, schedule='constant', **recipe)
    want = tuning.tune(defenses.ft(NET, hp), model(), augment=AUGMENT)
    got = tuning.tune(make(stamp=same), model(), augment=AUGMENT)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)

  def test_statistics_move_once_per_step_by_the_mixed_batch(self):
    (phase,) = make(share=1.0).phases
    state = phase.init(KEY, types.Carry(model=model(), extra={}))
    state, _ = phase.step(state, batch(), CLOCK)
    ones = jnp.ones_like(batch()['image'])
    want = NET.apply(model(), ones, train=True)[1].batch_stats
    got = phase.finish(state).model.batch_stats
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)

  def test_learning_rate_of_zero_leaves_the_weights(self):
    got = tuning.tune(make(lr=0.0, stamp=same), model())
    chex.assert_trees_all_equal(got.params, model().params)
    mean, var = tuning.decayed(model(), steps=2)
    np.testing.assert_allclose(
      got.batch_stats['bn0']['mean'], mean, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(got.batch_stats['bn0']['var'], var, rtol=1e-4)

  def test_random_triggers_are_drawn_anew_in_each_step(self):
    def noise(images, key, index):
      del index
      return jnp.full_like(images, MARK + jax.random.uniform(key))

    first, second = seen(lambda net: make(net, noise, share=1.0))
    self.assertGreater(abs(first[0, 0, 0, 0] - second[0, 0, 0, 0]), 1e-3)

  def test_without_a_trigger_it_is_not_made(self):
    with self.assertRaisesRegex(
      ValueError, 'true trigger.*`launch.defend` hands over.*`stamp='
    ):
      defenses.exact_purification(NET)

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(batch_size=0), '`batch_size=0` must be positive'),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(momentum=-0.1), '`momentum=-0.1` must not be negative'),
    (dict(share=0.0), r'`share=0.0` is not in \(0, 1\]'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      make(**values)


class ToyWorldTest(parameterized.TestCase):
  def test_triggered_images_get_their_true_class(self):
    """Where plain fine-tuning keeps the backdoor, this one removes it."""
    recipe, victims = dict(lr=0.1, epochs=20, batch_size=32), toy.victims()
    tuned = toy.defend('ft', defenses.FtHParams(**recipe))
    hp = defenses.ExactPurificationHParams(**recipe)
    purified = toy.defend('exact_purification', hp)
    self.assertEqual(purified.extra, {})
    kept = toy.evaluate_stack(tuned.model, victims)
    gone = toy.evaluate_stack(purified.model, victims)
    for before, after in zip(kept, gone, strict=True):
      self.assertGreater(before['asr'], 0.8)
      self.assertLess(after['asr'], 0.05)
      self.assertGreater(after['r_acc'], 0.9)
