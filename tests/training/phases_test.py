"""Phases: one step by hand, the order of trigger and augmentation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import keys, optim, training, types
from tests import small_nets

SIZE, CLASSES, NUM = 2, 3, 4
NET = small_nets.linear_net(SIZE, CLASSES)
KEY = jax.random.key(0)
CLOCK = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 10, 2)
LENGTH = dict(name='p', num_epochs=1, batch_size=NUM, reads='train')


def batch():
  images = np.random.default_rng(0).random((NUM, SIZE, SIZE, 3), np.float32)
  return {
    'image': jnp.asarray(images),
    'label': jnp.arange(NUM) % CLASSES,
    'index': 10 + jnp.arange(NUM),
    'mask': jnp.ones(NUM, bool),
  }


def sgd(lr=0.5, **kwargs):
  base = dict(momentum=0.0, weight_decay=0.0)
  return optim.sgd(optim.constant(lr), **base | kwargs)


def one_step(phase, model, extra=(), data=None):
  """Carry and metrics after a single step."""
  state = phase.init(KEY, types.Carry(model=model, extra=extra))
  state, metrics = phase.step(state, data or batch(), CLOCK)
  return phase.finish(state), metrics


def softmax_gradient(params, data):
  """Loss, accuracy and gradient of softmax regression, in NumPy."""
  x = np.asarray(data['image'], np.float64).reshape(NUM, -1)
  logits = x @ np.asarray(params['w']) + np.asarray(params['b'])
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  y = np.eye(CLASSES)[np.asarray(data['label'])]
  error = (p - y) / NUM
  loss = -np.log(p[y == 1]).mean()
  accuracy = (p.argmax(1) == y.argmax(1)).mean()
  return loss, accuracy, {'w': x.T @ error, 'b': error.sum(0)}


class FitTest(parameterized.TestCase):
  """½(x − target)² with the target, and a count of steps, in the rest."""

  def phase(self, optimizer=None, **parts):
    def objective(x, rest, batch, clock):
      del clock
      target, count = rest
      target = target + jnp.mean(batch['label'])
      loss = 0.5 * jnp.sum((x['a'] - target) ** 2)
      return loss, ({'target': target}, (rest[0], count + 1))

    return training.fit(
      lambda key, carry: ({'a': carry.extra['x']}, (jnp.asarray(1.0), 0)),
      objective,
      optimizer or sgd(0.5),
      finish=lambda x, rest: types.Carry(model=rest, extra=x),
      **LENGTH,
      **parts,
    )

  def step(self, phase, *x, label=0):
    data = {**batch(), 'label': jnp.full(NUM, label)}
    extra = {'x': jnp.asarray(x, jnp.float32)}
    return one_step(phase, None, extra, data)

  def test_one_step_by_hand(self):
    carry, metrics = self.step(self.phase(), 3.0, 1.0)
    np.testing.assert_allclose(carry.extra['a'], [2.0, 1.0])
    np.testing.assert_allclose(metrics['loss'], 2.0)
    np.testing.assert_allclose(metrics['target'], 1.0)
    self.assertEqual(set(metrics), {'loss', 'target'})

  def test_rest_is_the_objectives_and_is_not_trained(self):
    carry, _ = self.step(self.phase(sgd(0.5, weight_decay=0.1)), 3.0)
    np.testing.assert_allclose(carry.model[0], 1.0)
    self.assertEqual(int(carry.model[1]), 1)

  def test_prepare_changes_rest_and_batch_and_stops_gradients(self):
    def prepare(x, rest, batch, clock):
      del clock
      # A target that follows x would leave no gradient if it passed one.
      return (x['a'][0] - 1, rest[1] + 10), {**batch, 'label': jnp.ones(NUM)}

    carry, metrics = self.step(self.phase(prepare=prepare), 3.0)
    np.testing.assert_allclose(metrics['target'], 3.0)
    np.testing.assert_allclose(carry.extra['a'], [3.0])
    self.assertEqual(int(carry.model[1]), 11)

    shifted = lambda x, rest, batch, clock: ((x['a'][0] - 1, rest[1]), batch)
    carry, _ = self.step(self.phase(prepare=shifted), 3.0)
    np.testing.assert_allclose(carry.extra['a'], [2.5])

  def test_constrain_comes_last_and_sees_the_new_rest(self):
    seen = []

    def constrain(x, rest):
      seen.append(int(rest[1]))
      return {'a': jnp.clip(x['a'], 1.75, 1.9)}

    carry, _ = self.step(self.phase(constrain=constrain), 3.0, 1.0)
    np.testing.assert_allclose(carry.extra['a'], [1.9, 1.75])
    self.assertEqual(seen, [1])

  def test_optimizer_gets_the_clock_and_further_gradients(self):
    seen = []

    def update(grads, state, params, *, clock, grad_fn):
      far = grad_fn({'a': params['a'] + 1}, 0)
      seen.append((grads['a'], far['a'], clock))
      return grads, state

    optimizer = optax.GradientTransformationExtraArgs(lambda p: (), update)
    self.step(self.phase(optimizer), 3.0, label=1)
    grads, far, clock = seen[0]
    np.testing.assert_allclose(grads, [1.0])
    np.testing.assert_allclose(far, [2.0])
    self.assertIs(clock, CLOCK)

  def test_momentum_lives_in_the_state(self):
    phase = self.phase(sgd(0.5, momentum=0.9))
    state = phase.init(KEY, types.Carry(model=None, extra={'x': jnp.ones(1)}))
    data = {**batch(), 'label': jnp.ones(NUM)}
    for want in (1.5, 2.2):  # v = −1, then −0.9 − 0.5
      state, _ = phase.step(state, data, CLOCK)
      np.testing.assert_allclose(state.trained['a'], [want], rtol=1e-6)


class SupervisedTest(parameterized.TestCase):
  def test_one_step_of_softmax_regression(self):
    model = NET.init(KEY)
    phase = training.supervised(NET, sgd(0.5, weight_decay=0.1), **LENGTH)
    carry, metrics = one_step(phase, model)
    head = model.params['head']
    loss, accuracy, grads = softmax_gradient(head, batch())
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], accuracy)
    for name, grad in grads.items():
      old = np.asarray(head[name])
      want = old - 0.5 * (grad + 0.1 * old)
      got = carry.model.params['head'][name]
      np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

  def test_loss_may_be_replaced(self):
    loss = lambda logits, labels: jnp.sum(logits)
    phase = training.supervised(NET, sgd(1.0), loss=loss, **LENGTH)
    model = NET.init(KEY)
    carry, _ = one_step(phase, model)
    moved = model.params['head']['b'] - carry.model.params['head']['b']
    np.testing.assert_allclose(moved, np.full(CLASSES, NUM), rtol=1e-5)

  def test_extra_is_handed_on(self):
    phase = training.supervised(NET, sgd(), **LENGTH)
    extra = {'mask': jnp.arange(3.0)}
    carry, _ = one_step(phase, NET.init(KEY), extra)
    chex.assert_trees_all_equal(carry.extra, extra)

  def test_length_becomes_the_phase(self):
    phase = training.supervised(NET, sgd(), **LENGTH, drop_last=False)
    self.assertEqual((phase.name, phase.num_epochs), ('p', 1))
    self.assertFalse(phase.drop_last)
    with self.assertRaisesRegex(TypeError, 'epochs'):
      training.supervised(NET, sgd(), name='p', epochs=1)


class DescentTest(parameterized.TestCase):
  def objective(self, model, extra, batch, clock):
    """½‖w − c‖² with c in `extra`, plus one unit on the running statistic."""
    del clock
    w = model.params['w']
    new = types.ModelState(
      params=model.params, batch_stats=model.batch_stats + jnp.sum(w)
    )
    logits = jax.nn.one_hot(batch['label'], CLASSES)
    return 0.5 * jnp.sum((w - extra) ** 2), (logits, new)

  def model(self, *w):
    params = {'w': jnp.asarray(w, jnp.float32)}
    return types.ModelState(params=params, batch_stats=jnp.zeros(()))

  def test_step_and_statistics_are_those_at_the_weights(self):
    phase = training.descent(self.objective, sgd(0.5), **LENGTH)
    carry, metrics = one_step(phase, self.model(1.0, 3.0), jnp.ones(2))
    np.testing.assert_allclose(carry.model.params['w'], [1.0, 2.0])
    np.testing.assert_allclose(carry.model.batch_stats, 4.0)
    np.testing.assert_allclose(metrics['loss'], 2.0)
    np.testing.assert_allclose(metrics['accuracy'], 1.0)

  def test_further_gradients_are_those_of_the_same_batch(self):
    seen = []

    def update(grads, state, params, *, clock, grad_fn):
      far = grad_fn(jax.tree.map(lambda x: x + 1, params), 0)
      seen.append((grads['w'], far['w'], clock))
      return jax.tree.map(jnp.zeros_like, grads), state

    optimizer = optax.GradientTransformationExtraArgs(lambda p: (), update)
    phase = training.descent(self.objective, optimizer, **LENGTH)
    carry, _ = one_step(phase, self.model(1.0, 3.0), jnp.ones(2))
    grads, far, clock = seen[0]
    np.testing.assert_allclose(grads, [0.0, 2.0])
    np.testing.assert_allclose(far, [1.0, 3.0])
    self.assertEqual(clock.num_steps, CLOCK.num_steps)
    # The statistics of the second gradient, 6, are dropped.
    np.testing.assert_allclose(carry.model.batch_stats, 4.0)

  def test_prepare_comes_first_and_may_change_extra(self):
    def prepare(extra, model, batch, clock):
      del clock
      return extra + model.params['w'], {**batch, 'label': 0 * batch['label']}

    phase = training.descent(
      self.objective, sgd(0.5), prepare=prepare, **LENGTH
    )
    carry, _ = one_step(phase, self.model(1.0, 3.0), jnp.ones(2))
    np.testing.assert_allclose(carry.extra, [2.0, 4.0])
    np.testing.assert_allclose(carry.model.params['w'], [1.5, 3.5])


def recording_attack(order):
  """Adds one to images, 1 + the state to its loss, and counts its updates."""

  def poison(state, batch, key):
    del key
    return {**batch, 'image': batch['image'] + state.trigger['shift']}

  def update(state, classifier, model, batch, key):
    del classifier, model, key
    trigger = {
      'shift': state.trigger['shift'],
      'seen': jnp.mean(batch['image']),
      'count': state.trigger['count'] + 1,
    }
    return types.AttackState(trigger=trigger, kind=state.kind), {}

  def objective(state, classifier, model, batch, key):
    del key
    logits, new = classifier.apply(model, batch['image'], train=True)
    return jnp.mean(batch['image']) + state.trigger['count'], (logits, new)

  info = types.AttackInfo(
    name='recording',
    label_mode='all2one',
    target_label=0,
    poison_ratio=0.1,
    order=order,
  )
  return types.Attack(None, poison, None, None, update, objective, info)


def attack_state():
  trigger = {
    'shift': jnp.asarray(1.0),
    'seen': jnp.asarray(0.0),
    'count': jnp.asarray(0),
  }
  return types.AttackState(trigger=trigger, kind=jnp.zeros(20, jnp.int8))


def half(images, keys):
  """An augmentation whose order with adding one shows."""
  assert keys.shape == images.shape[:1]
  return images / 2


class ImplantTest(parameterized.TestCase):
  @parameterized.parameters(
    ('poison_augment', lambda mean: (mean + 1) / 2),
    ('augment_poison', lambda mean: mean / 2 + 1),
  )
  def test_order_of_trigger_and_augmentation(self, order, want):
    phase = training.implant(
      NET, recording_attack(order), sgd(), augment=half, **LENGTH
    )
    carry, metrics = one_step(phase, NET.init(KEY), attack_state())
    mean = want(float(jnp.mean(batch()['image'])))
    # The objective sees the trigger after its update: its count is 1.
    np.testing.assert_allclose(metrics['loss'], mean + 1, rtol=1e-5)
    np.testing.assert_allclose(carry.extra.trigger['seen'], mean, rtol=1e-5)

  def test_an_augmentation_of_the_attack_stands_in_for_the_recipe(self):
    attack = recording_attack('poison_augment')._replace(
      augment=lambda images, keys: images / 4
    )
    phase = training.implant(NET, attack, sgd(), augment=half, **LENGTH)
    _, metrics = one_step(phase, NET.init(KEY), attack_state())
    mean = (float(jnp.mean(batch()['image'])) + 1) / 4
    np.testing.assert_allclose(metrics['loss'], mean + 1, rtol=1e-5)

  def test_without_augmentation(self):
    phase = training.implant(
      NET, recording_attack('poison_augment'), sgd(), **LENGTH
    )
    _, metrics = one_step(phase, NET.init(KEY), attack_state())
    mean = float(jnp.mean(batch()['image']))
    np.testing.assert_allclose(metrics['loss'], mean + 2, rtol=1e-5)

  def test_state_is_carried_from_step_to_step(self):
    attack = recording_attack('poison_augment')
    length = dict(name='p', num_epochs=3, batch_size=2, reads='train')
    phase = training.implant(NET, attack, sgd(), **length)
    images = np.zeros((4, SIZE, SIZE, 3), np.uint8)
    carry, _ = training.run_phases(
      (phase,),
      types.Carry(model=NET.init(KEY), extra=attack_state()),
      {'train': training.make_feed(images, np.arange(4) % CLASSES)},
      KEY,
    )
    self.assertEqual(int(carry.extra.trigger['count']), 6)

  def test_augmentation_of_an_example_depends_on_its_index_alone(self):
    def noisy(images, keys):
      draw = lambda key: jax.random.uniform(key, images.shape[1:])
      return jax.vmap(draw)(keys)

    def mean_of(rows):
      data = {name: value[rows] for name, value in batch().items()}
      phase = training.implant(
        NET, recording_attack('poison_augment'), sgd(), augment=noisy, **LENGTH
      )
      _, metrics = one_step(phase, NET.init(KEY), attack_state(), data)
      return float(metrics['loss']) - 1

    first, second = mean_of(jnp.asarray([0, 1])), mean_of(jnp.asarray([2, 3]))
    both = mean_of(jnp.arange(4))
    self.assertNotAlmostEqual(first, second, places=4)
    self.assertAlmostEqual(both, (first + second) / 2, places=5)
    own = keys.per_example(
      keys.stream(CLOCK.key, 'augment'), batch()['index'][:2]
    )
    want = float(jnp.mean(noisy(batch()['image'][:2], own)))
    self.assertAlmostEqual(first, want, places=5)


class RememberTest(parameterized.TestCase):
  def test_hands_on_the_model_it_started_from(self):
    model, extra = NET.init(KEY), {'mask': jnp.ones(2)}
    plain = training.supervised(NET, sgd(), **LENGTH)
    carry, _ = one_step(training.remember(plain), model, extra)
    want, _ = one_step(plain, model, extra)
    chex.assert_trees_all_equal(carry.model, want.model)
    chex.assert_trees_all_equal(carry.extra.model, model)
    chex.assert_trees_all_equal(carry.extra.extra, extra)
