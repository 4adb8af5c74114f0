import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb, training, tree, types
from bdjax.reactivation.black_box import (
  BlackBoxHParams,
  black_box,
  pool_loss,
)
from tests import small_nets

KEY = jax.random.key(0)
NUM = 12
# Gray images, so alike that one perturbation moves many of them at once.
IMAGES = 118 + small_nets.random_images(0, NUM) % 21
TARGETS = np.array([0, 2] + [1] * 10, np.int32)
NET = small_nets.linear_net(size=8, classes=4)
# 1 is never exceeded: the search goes on to the end of its budget.
ENDLESS = dict(stop_asr=1.0, num_queries=24)
RUNS = dict(
  linf=BlackBoxHParams(eps=0.1, **ENDLESS),
  l2=BlackBoxHParams(eps=2.0, norm='l2', **ENDLESS),
  margin=BlackBoxHParams(eps=0.1, loss='margin', **ENDLESS),
)


@functools.cache
def model(seed=0):
  """Small weights, so that no image is beyond reach."""
  return jax.tree.map(lambda w: 0.1 * w, NET.init(jax.random.key(seed)))


def batch_of(order=None, images=IMAGES, targets=TARGETS, mask=None):
  """The whole pool in some order, as the loop would hand it over."""
  order = np.arange(len(images)) if order is None else np.asarray(order)
  return {
    'image': jnp.asarray(images[order], jnp.float32) / 255,
    'label': jnp.asarray(targets[order]),
    'index': jnp.asarray(order),
    'mask': jnp.ones(len(order), bool) if mask is None else jnp.asarray(mask),
  }


@functools.cache
def stepper(hp):
  """The attack's phase with its step compiled once per hyper-parameters."""
  phase = black_box(NET, hp).phases[0]
  return phase, jax.jit(phase.step)


def search(hp, batches, num=None):
  """States and metrics of every step; states[0] is that before any."""
  phase, step = stepper(hp)
  states, metrics = [start(hp)], []
  for i in range(num or hp.num_queries):
    at = jnp.asarray(i, jnp.int32)
    clock = types.Clock(jax.random.fold_in(KEY, i), at, at, hp.num_queries, 1)
    state, found = step(states[-1], batches(i), clock)
    states.append(state)
    metrics.append(jax.device_get(found))
  return states, jax.tree.map(lambda *x: np.stack(x), *metrics)


def start(hp):
  return stepper(hp)[0].init(KEY, types.Carry(model=model(), extra={}))


@functools.cache
def searched(name):
  return search(RUNS[name], lambda i: batch_of())


def naive_losses(delta, loss, images=IMAGES, targets=TARGETS):
  """Losses and hits of every image, in float64."""
  x = np.clip(images / 255 + np.float64(delta), 0, 1).reshape(len(images), -1)
  z = x @ np.float64(model().params['head']['w'])
  own = z[np.arange(len(z)), targets]
  if loss == 'margin':
    others = np.where(np.eye(4, dtype=bool)[targets], -np.inf, z)
    return others.max(1) - own, z.argmax(1) == targets
  return np.log(np.exp(z).sum(1)) - own, z.argmax(1) == targets


def run(hp, **options):
  return training.run_phases(
    black_box(NET, hp).phases,
    types.Carry(model=model(), extra={}),
    {'pool': training.make_feed(IMAGES, TARGETS)},
    KEY,
    **options,
  )


class BlackBoxTest(parameterized.TestCase):
  @parameterized.parameters(*RUNS)
  def test_row15_accepted_losses_strictly_decrease(self, name):
    _, metrics = searched(name)
    accepted, loss = metrics['accepted'], metrics['loss']
    self.assertTrue(accepted[0])
    self.assertTrue(np.all(np.diff(loss[accepted]) < 0), loss)
    self.assertGreater(accepted.sum(), 3)
    self.assertLess(accepted.sum(), len(accepted))
    # What is not accepted leaves everything as it was.
    for i in np.flatnonzero(~accepted):
      self.assertEqual(loss[i], loss[i - 1])
      self.assertEqual(metrics['asr'][i], metrics['asr'][i - 1])

  @parameterized.parameters(*RUNS)
  def test_row15_one_query_of_the_start_and_one_per_proposal(self, name):
    states, metrics = searched(name)
    np.testing.assert_array_equal(metrics['queries'], np.arange(1, 25))
    self.assertEqual(states[-1].queries.dtype, jnp.int32)
    # The first step shows the start and proposes nothing.
    np.testing.assert_array_equal(states[1].delta, states[0].delta)
    self.assertFalse(np.any(metrics['done']))

  def test_schedule_counts_proposals_from_zero(self):
    search = perturb.square_search((8, 8, 3), 9, eps=0.1, norm='linf')
    # A search whose proposals tell their number.
    told = lambda key, delta, i: jnp.full_like(delta, i)
    search = search._replace(propose=told)
    with mock.patch.object(perturb, 'square_search', return_value=search):
      phase = black_box(NET).phases[0]
    fresh = phase.init(KEY, types.Carry(model=model(), extra={}))
    for i in (1, 2, 8):
      at = jnp.asarray(i)
      after, _ = phase.step(fresh, batch_of(), types.Clock(KEY, at, at, 9, 1))
      np.testing.assert_array_equal(after.delta, i - 1)

  @parameterized.parameters(*RUNS)
  def test_row12_inside_the_ball_at_every_query(self, name):
    hp = RUNS[name]
    order = {'linf': np.inf, 'l2': 2}[hp.norm]
    for state in searched(name)[0]:
      length = np.linalg.norm(np.float64(state.delta).ravel(), order)
      self.assertAlmostEqual(length / hp.eps, 1, delta=1e-5)
      projected = perturb.project(state.delta, hp.eps, hp.norm)
      np.testing.assert_allclose(projected, state.delta, rtol=1e-5)
      if hp.norm == 'linf':
        np.testing.assert_array_equal(np.abs(state.delta), np.float32(hp.eps))

  @parameterized.parameters(*RUNS)
  def test_metrics_are_those_of_what_is_kept(self, name):
    states, metrics = searched(name)
    for i, state in enumerate(states[1:]):
      losses, hits = naive_losses(state.delta, RUNS[name].loss)
      self.assertAlmostEqual(metrics['loss'][i], losses.mean(), delta=1e-5)
      self.assertAlmostEqual(metrics['asr'][i], hits.mean(), delta=1e-6)
    best = np.maximum.accumulate(metrics['asr'])
    np.testing.assert_array_equal(metrics['best_asr'], best)

  def test_margin_by_hand(self):
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [1.0, 1.5, 0.0]])
    target, mask = jnp.array([0, 2, 0]), jnp.array([True, True, True])
    loss, asr = pool_loss(logits, target, mask, 'margin')
    by_hand = (2 - 3) + (5 - 1) + (1.5 - 1)
    self.assertAlmostEqual(float(loss), by_hand, delta=1e-6)
    self.assertAlmostEqual(float(asr), 1 / 3, delta=1e-6)

  def test_cross_entropy_by_hand(self):
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    loss, asr = pool_loss(logits, jnp.array([0, 1]), jnp.ones(2, bool))
    self.assertAlmostEqual(float(loss), -np.log(0.5 * 0.1), delta=1e-6)
    self.assertAlmostEqual(float(asr), 0.5, delta=1e-6)

  def test_masked_images_do_not_count(self):
    hp, size = RUNS['linf'], 8
    mask = np.arange(NUM) < size
    some = lambda i: batch_of(np.arange(size))
    _, alone = search(hp, some, num=6)
    _, masked = search(hp, lambda i: batch_of(mask=mask), num=6)
    chex.assert_trees_all_close(masked, alone, rtol=1e-5)

  @parameterized.parameters('linf', 'l2')
  def test_order_of_the_pool_does_not_matter(self, name):
    rng = np.random.default_rng(0)
    shuffled = lambda i: batch_of(rng.permutation(NUM))
    states, metrics = search(RUNS[name], shuffled)
    chex.assert_trees_all_equal(states[-1], searched(name)[0][-1])
    chex.assert_trees_all_equal(metrics, searched(name)[1])

  def test_targets_differ_by_image(self):
    # Every second image to class 0, the others to class 1: whoever took one
    # target for all would find half of them.
    net = small_nets.linear_net(size=8, classes=2)
    w = np.zeros((8, 8, 3, 2), np.float32)
    w[:4, :, :, 0] = w[4:, :, :, 1] = 1.0
    state = types.ModelState(
      params={'head': {'w': jnp.asarray(w.reshape(-1, 2)), 'b': jnp.zeros(2)}},
      batch_stats={},
    )
    images = np.full((4, 8, 8, 3), 100, np.uint8)
    images[::2, :4] = images[1::2, 4:] = 110
    feed = training.make_feed(images, np.array([0, 1, 0, 1]))
    _, metrics = training.run_phases(
      black_box(net, BlackBoxHParams(num_queries=5)).phases,
      types.Carry(model=state, extra={}),
      {'pool': feed},
      KEY,
    )
    # 1 only if either half is asked for its own target.
    one_target = np.array([0.5, 0.5])
    asr = metrics['search']['best_asr'][-1]
    self.assertGreater(asr, one_target.max())

  def test_early_stop_freezes_everything(self):
    hp = dataclasses.replace(RUNS['l2'], stop_asr=0.7)
    states, metrics = search(hp, lambda i: batch_of())
    (first, *_) = np.flatnonzero(metrics['best_asr'] > 0.7)
    self.assertBetween(first, 1, 20)
    endless = searched('l2')[1]
    for name in ('loss', 'asr', 'best_asr', 'queries', 'accepted'):
      np.testing.assert_array_equal(
        metrics[name][: first + 1], endless[name][: first + 1]
      )
    np.testing.assert_array_equal(metrics['queries'][first:], first + 1)
    np.testing.assert_array_equal(metrics['done'], np.arange(24) > first)
    self.assertFalse(np.any(metrics['accepted'][first + 1 :]))
    for state in states[first + 2 :]:
      chex.assert_trees_all_equal(state, states[first + 1])

  def test_a_loop_that_listens_leaves_out_what_is_frozen(self):
    hp = dataclasses.replace(RUNS['l2'], stop_asr=0.7)
    reports = []
    carry, metrics = run(hp, chunk=3, on_chunk=reports.append)
    last = int(metrics['search']['queries'][-1])
    self.assertLess(3 * len(reports), 24)
    self.assertEqual(reports[-1].step, -(-(last + 1) // 3) * 3)
    whole, all_metrics = run(hp)
    chex.assert_trees_all_equal(carry, whole)
    chex.assert_trees_all_equal(metrics, all_metrics)

  def test_chunks_change_nothing(self):
    whole, metrics = run(RUNS['linf'])
    for chunk in (1, 8):
      reports = []
      again, same = run(RUNS['linf'], chunk=chunk, on_chunk=reports.append)
      self.assertLen(reports, 24 // chunk)
      chex.assert_trees_all_equal((again, same), (whole, metrics))

  @parameterized.parameters('linf', 'l2')
  def test_stack_equals_loop(self, name):
    members = [model(seed) for seed in range(3)]

    def attacked(state):
      return training.run_phases(
        black_box(NET, RUNS[name]).phases,
        types.Carry(model=state, extra={}),
        {'pool': training.make_feed(IMAGES, TARGETS)},
        KEY,
      )

    lifted = jax.jit(jax.vmap(attacked))(tree.stack(members))
    single = jax.jit(attacked)
    looped = tree.stack([single(state) for state in members])
    chex.assert_trees_all_close(lifted, looped, rtol=1e-4, atol=1e-6)

  def test_model_is_returned_bit_identical(self):
    states, _ = searched('l2')
    carry = stepper(RUNS['l2'])[0].finish(states[-1])
    chex.assert_trees_all_equal(carry.model, model())
    np.testing.assert_array_equal(carry.extra['delta'], states[-1].delta)

  @parameterized.parameters('linf', 'l2')
  def test_zero_radius_changes_no_image(self, norm):
    hp = BlackBoxHParams(eps=0.0, norm=norm, **ENDLESS)
    states, metrics = search(hp, lambda i: batch_of(), num=4)
    for state in states:
      np.testing.assert_array_equal(state.delta, 0)
    np.testing.assert_array_equal(metrics['accepted'], [True] + [False] * 3)

  def test_it_finds_the_best_signs_of_a_linear_model(self):
    # With one image and two classes the margin is linear in Δ: the optimum
    # over entries ±eps is −eps · sign of its gradient.
    net = small_nets.linear_net(size=4, classes=2)
    state = net.init(KEY)
    image = np.full((1, 4, 4, 3), 128, np.uint8)
    hp = BlackBoxHParams(eps=0.1, loss='margin', num_queries=1500, stop_asr=1.0)
    carry, metrics = training.run_phases(
      black_box(net, hp).phases,
      types.Carry(model=state, extra={}),
      {'pool': training.make_feed(image, np.array([1]))},
      KEY,
    )
    w = np.float64(state.params['head']['w'])
    slope = (w[:, 0] - w[:, 1]).reshape(4, 4, 3)
    best = np.sum(slope * 128 / 255) - 0.1 * np.abs(slope).sum()
    self.assertAlmostEqual(metrics['search']['loss'][-1], best, delta=1e-3)
    np.testing.assert_array_equal(
      np.sign(carry.extra['delta']), -np.sign(slope)
    )

  def test_phase_asks_for_the_pool_and_no_gradient(self):
    (phase,) = black_box(NET).phases
    self.assertEqual((phase.name, phase.reads), ('search', 'pool'))
    self.assertEqual((phase.num_steps, phase.batch_size), (10_000, 500))
    self.assertEqual((phase.grad_passes, phase.done), (0, 'done'))

  def test_float_hparams_are_the_leaves(self):
    hp = BlackBoxHParams(eps=0.1, stop_asr=0.9)
    self.assertEqual(sorted(jax.tree.leaves(hp)), [0.1, 0.9])

  @parameterized.parameters(
    (dict(norm='l1'), "use norm='l2' or 'linf'"),
    (dict(norm='L2'), 'Known: l2, linf'),
    (dict(eps=12.75), '12.75/255'),
    (dict(loss='margins'), "Did you mean 'margin'"),
    (dict(num_queries=0), '`num_queries=0` must be positive'),
    (dict(pool_size=-1), '`pool_size=-1` must be positive'),
    (dict(p_start=10.0), 'use 0.1 for 10 %'),
    (dict(stop_asr=99.0), r'`stop_asr=99.0` is not in \[0, 1\]'),
  )
  def test_errors_name_the_cure(self, change, message):
    with self.assertRaisesRegex(ValueError, message):
      black_box(NET, BlackBoxHParams(**change))
