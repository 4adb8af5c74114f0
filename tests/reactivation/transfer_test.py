import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import defenses, eval, keys, training, tree, types
from bdjax.reactivation import controls, pools
from bdjax.reactivation.transfer import TransferHParams, transfer
from bdjax.reactivation.white_box import WhiteBoxHParams, white_box
from tests import small_nets, toy

KEY = jax.random.key(0)
NUM = 12
FEED = training.make_feed(
  small_nets.random_images(0, NUM, size=4), np.arange(NUM) % 3
)
NET = small_nets.linear_net(size=4, classes=3)
CONV = small_nets.conv_net(size=4, classes=3, width=4)
SHORT = dict(outer_epochs=3, batch_size=4, inner_steps=2)


def models(count, net=NET, first=0):
  return [net.init(jax.random.key(first + i)) for i in range(count)]


def run(attack, extra, model=None):
  carry = types.Carry(model=model or NET.init(KEY), extra=extra)
  return training.run_phases(attack.phases, carry, {'pool': FEED}, KEY)


def learned(surrogates, networks=None, **options):
  """The perturbation after a short run."""
  attack = transfer(NET, TransferHParams(**SHORT, **options), networks)
  carry, _ = run(attack, {'surrogates': surrogates})
  return np.asarray(carry.extra['delta'])


def one_step(surrogates, networks=None, **options):
  """(Δ before, Δ after, metrics) of one step on one batch, unprojected."""
  hp = TransferHParams(**{'norm': 'l2', 'eps': 1e3, 'lr': 1.0} | options)
  phase = transfer(NET, hp, networks).phases[0]
  carry = types.Carry(model=NET.init(KEY), extra={'surrogates': surrogates})
  state = phase.init(KEY, carry)
  state = state._replace(delta=jnp.zeros((4, 4, 3)))
  batch = {
    'image': jnp.full((5, 4, 4, 3), 0.5)
    + 0.01 * jnp.arange(5.0)[:, None, None, None],
    'label': jnp.arange(5) % 3,
    'index': jnp.arange(5),
    'mask': jnp.ones(5, bool),
  }
  zero = jnp.zeros((), jnp.int32)
  after, metrics = phase.step(state, batch, types.Clock(KEY, zero, zero, 1, 1))
  return batch, after, metrics


def gradient(net, model, batch):
  """∇ of the mean cross-entropy by Δ at 0, in plain autodiff."""

  def loss(delta):
    logits, _ = net.apply(model, batch['image'] + delta[None])
    chosen = jnp.take_along_axis(
      jax.nn.log_softmax(logits), batch['label'][:, None], axis=1
    )
    return -jnp.mean(chosen)

  return np.asarray(jax.grad(loss)(jnp.zeros((4, 4, 3))))


class TransferTest(parameterized.TestCase):
  def test_row17_avg_of_one_is_the_white_box_attack_without_its_second_term(
    self,
  ):
    (model,) = models(1)
    hp = WhiteBoxHParams(weight_runner_up=0.0, **SHORT)
    carry, _ = run(white_box(NET, hp), {}, model)
    mine = learned((tree.stack([model]),))
    np.testing.assert_allclose(mine, carry.extra['delta'], atol=1e-6)

  def test_row17_step_of_one_is_avg_of_one(self):
    stack = (tree.stack(models(1)),)
    np.testing.assert_allclose(
      learned(stack, mode='step'), learned(stack, mode='avg'), atol=1e-6
    )

  def test_avg_adds_up_the_gradients_of_all(self):
    members = models(3)
    stack = (tree.stack(members),)
    batch, after, _ = one_step(stack)
    total = sum(gradient(NET, model, batch) for model in members)
    np.testing.assert_allclose(after.delta, -total, rtol=1e-4, atol=1e-7)
    _, after, _ = one_step(stack, mean_over_models=True)
    np.testing.assert_allclose(after.delta, -total / 3, rtol=1e-4, atol=1e-7)

  def test_unlike_architectures_add_up_too(self):
    linear, conv = models(2), models(1, CONV)
    batch, after, metrics = one_step(
      (tree.stack(linear), tree.stack(conv)), (NET, CONV)
    )
    total = sum(gradient(NET, m, batch) for m in linear)
    total = total + gradient(CONV, conv[0], batch)
    np.testing.assert_allclose(after.delta, -total, rtol=1e-4, atol=1e-6)
    self.assertEqual(metrics['loss'].shape, ())

  def test_mom_follows_unit_gradients_with_memory(self):
    members = models(2)
    batch, after, _ = one_step(
      (tree.stack(members),), mode='mom', lr=0.1, momentum=0.5
    )
    unit = lambda g: g / np.linalg.norm(g)
    v = -unit(gradient(NET, members[0], batch))
    delta = 0.1 * v

    def loss_at(d):
      moved = {**batch, 'image': batch['image'] + d[None]}
      return gradient(NET, members[1], moved)

    v = 0.5 * v - unit(loss_at(delta))
    np.testing.assert_allclose(after.velocity, v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.delta, delta + 0.1 * v, atol=1e-5)

  @parameterized.parameters('avg', 'step', 'mom')
  def test_the_attacked_model_is_not_asked_and_stays(self, mode):
    attack = transfer(NET, TransferHParams(mode=mode, **SHORT))
    extra = {'surrogates': (tree.stack(models(2)),)}
    found = []
    for model in models(2, first=7):
      carry, _ = run(attack, extra, model)
      jax.tree.map(np.testing.assert_array_equal, carry.model, model)
      found.append(np.asarray(carry.extra['delta']))
    np.testing.assert_array_equal(found[0], found[1])
    self.assertLessEqual(np.abs(found[0]).max(), 0.05 + 1e-7)

  def test_metrics_are_means_over_surrogates_before_the_step(self):
    members = models(3)
    batch, _, metrics = one_step((tree.stack(members),))
    hits, losses = [], []
    for model in members:
      logits, _ = NET.apply(model, batch['image'])
      hits.append(np.mean(np.argmax(logits, -1) == np.asarray(batch['label'])))
      losses.append(training.cross_entropy(logits, batch['label']))
    self.assertAlmostEqual(float(metrics['asr']), np.mean(hits), delta=1e-6)
    self.assertAlmostEqual(float(metrics['loss']), np.mean(losses), delta=1e-5)

  @parameterized.parameters(
    (dict(mode='average'), "Did you mean 'avg'"),
    (dict(eps=12.75), '/255'),
    (dict(norm='linff'), "Did you mean 'linf'"),
    (dict(num_surrogates=0), '`num_surrogates=0` must be positive'),
    (dict(lr=-1.0), 'must not be negative'),
  )
  def test_errors_name_the_cure(self, change, message):
    hp = dataclasses.replace(TransferHParams(), **change)
    with self.assertRaisesRegex(ValueError, message):
      transfer(NET, hp)

  def test_missing_or_unlike_surrogates_are_refused(self):
    attack = transfer(NET, TransferHParams(**SHORT))
    with self.assertRaisesRegex(ValueError, "extra={'surrogates'"):
      run(attack, {})
    two = (tree.stack(models(1)), tree.stack(models(1, CONV)))
    with self.assertRaisesRegex(ValueError, '2 stacks of surrogates for 1 net'):
      run(attack, {'surrogates': two})
    with self.assertRaisesRegex(ValueError, 'Cannot stack 2 checkpoints'):
      tree.stack([*models(1), *models(1, CONV)])


@functools.cache
def sleeping(epochs):
  """Dormant models of the toy world: the same victims, tuned differently."""
  hp = defenses.FtHParams(lr=1.0, epochs=epochs, batch_size=32)
  return toy.defend('ft', hp).model


class ToyWorldTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_it_wakes_a_backdoor_through_other_defended_models(self):
    attack, images_of = toy.attack(), toy.dataset()
    hp = TransferHParams(lr=0.5, outer_epochs=8, pool_size=128, batch_size=64)
    method = transfer(toy.classifier(), hp)
    rates = []
    for i in range(toy.SEEDS):
      state, target = toy.victims()[i].state, tree.take(sleeping(20), i)
      others = tree.stack([tree.take(sleeping(n), i) for n in (16, 24)])
      pool = pools.triggered(KEY, attack, state, *images_of.train, hp.pool_size)
      carry, _ = training.run_phases(
        method.phases,
        types.Carry(model=target, extra={'surrogates': (others,)}),
        {'pool': training.make_feed(pool.images, pool.labels)},
        KEY,
      )
      stamp = functools.partial(attack.stamp, state)
      rate = lambda stamp, target=target: eval.evaluate(
        toy.classifier(),
        target,
        *images_of.test,
        stamp=stamp,
        relabel=attack.relabel,
        key=keys.stream(KEY, 'stamp'),
      )['asr']
      woken = controls.perturbed_stamp(stamp, method.trigger, carry.extra)
      rates.append((rate(stamp), rate(woken)))
    plain, woken = np.transpose(rates)
    self.assertTrue(np.all(woken > plain), rates)
    self.assertGreater(np.mean(woken - plain), 0.2, rates)
