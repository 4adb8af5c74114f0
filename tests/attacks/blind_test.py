"""Blind: the switch, the two passes, the weights, the pattern."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, models, registry, training, tree, types
from tests.eval import linear

KEY = jax.random.key(0)
SPEC = linear.spec(shape=(8, 8, 3), num_classes=4)
NET = linear.classifier(SPEC)  # counts its passes in training mode
NUM = 12
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(NUM) % 4


def setup(spec=SPEC, **hparams):
  attack = attacks.blind(spec, attacks.BlindHParams(**hparams))
  images = np.zeros((NUM, *spec.image_shape), np.uint8)
  return attack, attack.init(KEY, images, LABELS)


def batch():
  return {
    'image': jnp.asarray(IMAGES) / 255,
    'label': jnp.asarray(LABELS),
    'index': jnp.arange(NUM),
    'mask': jnp.ones(NUM, bool),
  }


def with_memory(state, **memory):
  trigger = {**state.trigger, **jax.tree.map(jnp.asarray, memory)}
  return dataclasses.replace(state, trigger=trigger)


def loss_and_grad(attack, state, net, model, data):
  def loss_fn(params):
    here = dataclasses.replace(model, params=params)
    return attack.objective(state, net, here, data, KEY)

  (loss, (_, after)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    model.params
  )
  return loss, grads, after


def task(net, model, images, labels):
  """(loss, gradient) of one pass."""

  def loss_fn(params):
    here = dataclasses.replace(model, params=params)
    logits, _ = net.apply(here, images, train=True)
    return training.cross_entropy(logits, labels)

  return jax.value_and_grad(loss_fn)(model.params)


def tasks(attack, state, net, model, data):
  """Those of the backdoor and of the clean task."""
  stamped = attack.stamp(state, data['image'], KEY, data['index'])
  goal = attack.relabel(data['label'])
  return (
    task(net, model, stamped, goal),
    task(net, model, data['image'], data['label']),
  )


class BlindTest(parameterized.TestCase):
  @parameterized.parameters('fixed', 'mgda')
  def test_until_it_is_active_the_loss_is_the_clean_one(self, balance):
    attack, state = setup(balance=balance)
    model = NET.init(KEY)
    loss, grads, after = loss_and_grad(attack, state, NET, model, batch())
    _, (want, want_grads) = tasks(attack, state, NET, model, batch())
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    chex.assert_trees_all_close(grads, want_grads, rtol=1e-5, atol=1e-7)
    self.assertEqual(float(after.batch_stats['passes']), 1)

  def test_active_loss_is_the_weighted_sum(self):
    attack, state = setup(w_backdoor=0.25, w_clean=2.0)
    state, model = with_memory(state, active=True), NET.init(KEY)
    loss, grads, after = loss_and_grad(attack, state, NET, model, batch())
    (b, g_b), (c, g_c) = tasks(attack, state, NET, model, batch())
    np.testing.assert_allclose(loss, 0.25 * b + 2 * c, rtol=1e-6)
    want = tree.add(tree.scale(0.25, g_b), tree.scale(2.0, g_c))
    chex.assert_trees_all_close(grads, want, rtol=1e-5, atol=1e-6)
    self.assertEqual(float(after.batch_stats['passes']), 2)

  def test_running_statistics_see_the_stamped_batch_first(self):
    net = models.make('tiny', SPEC)
    attack, state = setup()
    state, model = with_memory(state, active=True), net.init(KEY)
    data = batch()
    _, _, after = loss_and_grad(attack, state, net, model, data)
    stamped = attack.stamp(state, data['image'], KEY, data['index'])
    _, want = net.apply(model, stamped, train=True)
    _, want = net.apply(want, data['image'], train=True)
    chex.assert_trees_all_close(after.batch_stats, want.batch_stats, rtol=1e-5)

  @parameterized.parameters('loss+', 'loss', 'l2', 'none')
  def test_mgda_by_hand(self, normalizer):
    attack, state = setup(balance='mgda', mgda_normalize=normalizer)
    state, model = with_memory(state, active=True), NET.init(KEY)
    loss, grads, _ = loss_and_grad(attack, state, NET, model, batch())
    seen = tasks(attack, state, NET, model, batch())
    flat = lambda g: np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
    scaled = []
    for value, grad in seen:
      g = flat(grad).astype(np.float64)
      size = {
        'loss+': min(float(value) * np.linalg.norm(g), 10),
        'loss': min(float(value), 10),
        'l2': np.linalg.norm(g),
        'none': 1,
      }[normalizer]
      scaled.append(g / (size + 1e-5))
    one, two = scaled
    grid = np.linspace(0.001, 0.999, 9981)
    gram = [one @ one, one @ two, two @ two]
    squares = grid**2 * gram[0] + 2 * grid * (1 - grid) * gram[1]
    weight = grid[np.argmin(squares + (1 - grid) ** 2 * gram[2])]
    (b, g_b), (c, g_c) = seen
    np.testing.assert_allclose(loss, weight * b + (1 - weight) * c, rtol=1e-3)
    want = weight * flat(g_b) + (1 - weight) * flat(g_c)
    np.testing.assert_allclose(flat(grads), want, atol=2e-3)

  def test_weights_of_mgda_are_constants(self):
    """No gradient passes them: the outcome lies between the two tasks'."""
    attack, state = setup(balance='mgda')
    state, model = with_memory(state, active=True), NET.init(KEY)
    loss, grads, _ = loss_and_grad(attack, state, NET, model, batch())
    (b, g_b), (c, g_c) = tasks(attack, state, NET, model, batch())
    weight = (loss - c) / (b - c)
    self.assertBetween(float(weight), 0.001, 0.999)
    want = tree.add(tree.scale(weight, g_b), tree.scale(1 - weight, g_c))
    chex.assert_trees_all_close(grads, want, rtol=1e-3, atol=1e-4)

  def test_memory_is_a_ring_and_decides_before_it_notes(self):
    attack, state = setup(history=3, threshold=1.0)
    model = linear.constant(SPEC, 0)
    model = dataclasses.replace(model, batch_stats={'passes': jnp.zeros(())})
    seen, noted = [], []
    for scale in (0.1, 0.2, 0.3, 0.1, 9.0, 0.1, 0.1, 0.1, 0.1):
      bias = scale * jnp.asarray([0.0, 1.0, 2.0, 3.0])
      here = dataclasses.replace(model, params={**model.params, 'bias': bias})
      before = list(noted[-3:])
      state, metrics = attack.update(state, NET, here, batch(), KEY)
      noted.append(float(metrics['clean']))
      seen.append(bool(state.trigger['active']))
      want = len(before) == 3 and np.mean(before) < 1.0
      self.assertEqual(seen[-1], want)
    np.testing.assert_allclose(
      sorted(state.trigger['losses']), sorted(noted[-3:]), rtol=1e-6
    )
    self.assertEqual(int(state.trigger['count']), len(noted))

  def test_a_low_threshold_keeps_it_passive(self):
    attack, state = setup(history=1, threshold=0.0)
    for _ in range(3):
      state, _ = attack.update(state, NET, NET.init(KEY), batch(), KEY)
    self.assertFalse(bool(state.trigger['active']))

  def test_noted_is_the_clean_loss_in_training_mode(self):
    net = models.make('tiny', SPEC)
    attack, state = setup(history=2)
    model = net.init(KEY)
    state, _ = attack.update(state, net, model, batch(), KEY)
    logits, _ = net.apply(model, batch()['image'], train=True)
    want = training.cross_entropy(logits, batch()['label'])
    np.testing.assert_allclose(state.trigger['losses'], [want, 0], rtol=1e-6)

  @parameterized.parameters((32, 3, 23), (64, 3, 23), (16, 3, 13), (8, 3, 5))
  def test_pattern_and_its_place(self, size, row, column):
    attack, state = setup(linear.spec((size, size, 3), 4))
    grey = jnp.full((1, size, size, 3), 0.5)
    got = attack.stamp(state, grey, KEY, jnp.arange(1))[0]
    want = np.full((size, size), '.')
    for i, line in enumerate(('WBW', '.W.', '..B', '.W.', 'WBW')):
      want[row + i, column : column + 3] = list(line)
    values = {'W': 1.0, 'B': 0.0, '.': 0.5}
    expected = np.vectorize(values.get)(want)
    np.testing.assert_array_equal(got, np.stack([expected] * 3, -1))

  def test_poisoning_leaves_the_batch(self):
    attack, state = setup()
    got = attack.poison(state, batch(), KEY)
    self.assertEqual(int(jnp.sum(got.pop('kind') != types.CLEAN)), 0)
    chex.assert_trees_all_equal(got, batch())

  def test_all_to_all(self):
    attack, state = setup(label_mode='all2all', label_shift=2)
    self.assertIsNone(attack.info.target_label)
    np.testing.assert_array_equal(attack.relabel(LABELS), (LABELS + 2) % 4)
    state, model = with_memory(state, active=True), NET.init(KEY)
    loss, _, _ = loss_and_grad(attack, state, NET, model, batch())
    (b, _), (c, _) = tasks(attack, state, NET, model, batch())
    np.testing.assert_allclose(loss, 0.9 * b + c, rtol=1e-6)

  @parameterized.parameters(
    (dict(balance='mdga'), "Did you mean 'mgda'"),
    (dict(mgda_normalize='los'), "Did you mean 'loss'"),
    (dict(history=0), 'history=0'),
    (dict(threshold=-1.0), 'threshold=-1.0'),
    (dict(w_clean=-1.0), 'w_clean=-1.0'),
    (dict(w_backdoor=-1.0), 'w_backdoor=-1.0'),
    (dict(target_label=4), 'target_label=4'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_images_must_hold_the_pattern(self):
    with self.assertRaisesRegex(ValueError, 'use larger ones'):
      attacks.blind(linear.spec((4, 4, 3), 4))

  def test_takes_no_assets(self):
    with self.assertRaisesRegex(registry.UnknownName, 'asset'):
      attacks.blind(SPEC, assets={'mask': IMAGES})


if __name__ == '__main__':
  absltest.main()
