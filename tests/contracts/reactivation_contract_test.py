"""What every re-activation of the registry must satisfy.

What makes a method short enough for a test stands in `SHORT`; the models it
needs beside the one it attacks, handed to it as the extra of its first carry,
in `BESIDE`; what its factory takes beside hyper-parameters in `OPTIONS`; what
it achieves in `EFFECT`.
"""

import dataclasses
import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import (
  defenses,
  eval,
  keys,
  reactivation,
  sweep,
  training,
  tree,
  types,
)
from bdjax.reactivation import controls
from tests import small_nets, toy
from tests.contracts import entries

NET = small_nets.conv_net(size=8, classes=4, width=4)
KEY = jax.random.key(0)
NUM = 8
IMAGES = small_nets.random_images(0, NUM)
TARGETS = np.arange(NUM, dtype=np.int32) % 2
SHORT: dict[str, dict] = {
  'white_box': dict(outer_epochs=2, inner_steps=2, batch_size=4, pool_size=NUM),
  'black_box': dict(num_queries=6, pool_size=NUM),
  'transfer': dict(outer_epochs=2, inner_steps=2, batch_size=4, pool_size=NUM),
  'retuning_attack': dict(epochs=2, batch_size=4, poison_num=2),
  'qra': dict(epochs=2, batch_size=4, width=16),
}
BESIDE: dict[str, Callable[[], types.PyTree]] = {
  'transfer': lambda: {'surrogates': (tree.stack([model(5), model(6)]),)},
  'qra': lambda: {'retuned': model(5), 'clean': model(6)},
}
OPTIONS: dict[str, Callable[[], dict]] = {
  'retuning_attack': lambda: {'augment': toy.augment()},
}
# Settings that wake backdoors of the toy world which fine-tuning has put to
# sleep, beyond the plain trigger and beyond both controls.
EFFECT: dict[str, dict] = {
  'white_box': dict(outer_epochs=5, lr=0.5, pool_size=128, batch_size=64),
  # At an eps of 0.05 it takes a thousand queries, and on one model wins little.
  'black_box': dict(eps=0.08, num_queries=200, pool_size=64),
}
DORMANT = defenses.FtHParams(lr=1.0, epochs=20, batch_size=32)
NAMES = tuple(reactivation.REGISTRY)
NUM_TRIGGERED = 384  # test images of the toy world off the target class
PERTURBING = tuple(
  name
  for name in NAMES
  if reactivation.REGISTRY[name].info.outputs == 'perturbation'
)
# Those that learn from one pool, of images and the targets they are to reach.
UNIVERSAL = tuple(EFFECT)


def hparams(name):
  return reactivation.REGISTRY[name].hparams(**SHORT.get(name, {}))


def build(name, hp):
  options = OPTIONS.get(name, dict)()
  return reactivation.REGISTRY[name].make(NET, hp, **options)


def start(name, state):
  """The carry that a method starts from."""
  return types.Carry(model=state, extra=BESIDE.get(name, dict)())


@functools.cache
def model(seed=0):
  return NET.init(jax.random.key(seed))


def batch(size=4):
  return {
    'image': jnp.asarray(IMAGES[:size], jnp.float32) / 255,
    'label': jnp.asarray(TARGETS[:size]),
    'index': jnp.arange(size),
    'mask': jnp.ones(size, bool),
  }


def one_step(name, hp, state, key):
  """Carry and metrics after init, one step and finish of the first phase."""
  phase = build(name, hp).phases[0]
  zero = jnp.zeros((), jnp.int32)
  carry = phase.init(key, start(name, state))
  after, metrics = phase.step(
    carry, batch(), types.Clock(key, zero, zero, 4, 2)
  )
  return phase.finish(after), metrics


@functools.cache
def stepped(name, seed=0):
  run = jax.jit(functools.partial(one_step, name, hparams(name)))
  return run(model(), jax.random.key(seed))


@functools.cache
def finished(name):
  """The whole method on the pool."""
  feed = training.make_feed(IMAGES, TARGETS)
  attack = build(name, hparams(name))
  return training.run_phases(
    attack.phases, start(name, model()), {'pool': feed}, KEY
  )


@functools.cache
def toy_rates(name):
  """{field of a setting: ASR of each dormant model} on the toy test set."""
  victims, sleeping = toy.victims(), toy.defend('ft', DORMANT).model
  hp = reactivation.REGISTRY[name].hparams(**EFFECT[name])
  build = reactivation.REGISTRY[name].make
  method, attack = build(toy.classifier(), hp), toy.attack()
  cells = []
  for setting in controls.REQUIRED:
    for i in range(toy.SEEDS):
      defended = setting.model == 'defended'
      model = tree.take(sleeping, i) if defended else toy.clean_model()
      draw = functools.partial(controls.pool_of, setting.inputs, KEY, attack)
      state = victims[i].state
      pool = draw(state, *toy.dataset().train, hp.pool_size)
      test = draw(state, *toy.dataset().test, NUM_TRIGGERED)
      feed = training.make_feed(pool.images, pool.labels)
      cells.append({'model': model, 'feed': feed, 'test': test})

  def run(cell):
    carry, _ = training.run_phases(
      method.phases,
      types.Carry(model=cell['model'], extra={}),
      {'pool': cell['feed']},
      KEY,
    )
    images, targets, _ = cell['test']
    return eval.count(
      toy.classifier(),
      carry.model,
      images,
      targets + 1,  # any class but the target, which is 0 for all of them
      stamp=controls.perturbed_stamp(None, method.trigger, carry.extra),
      relabel=jnp.zeros_like,
      key=keys.stream(KEY, 'stamp'),
    )

  counts = sweep.over_checkpoints(run, tree.stack(cells))
  rates = eval.rates(counts)['asr'].reshape(-1, toy.SEEDS)
  fields = [setting.field for setting in controls.REQUIRED]
  return dict(zip(fields, rates, strict=True))


class ReactivationContractTest(parameterized.TestCase):
  @parameterized.product(name=NAMES)
  def test_runs_and_returns_finite_numbers(self, name):
    attack = build(name, hparams(name))
    carry, metrics = finished(name)
    self.assertEqual(attack.info, name)
    chex.assert_tree_all_finite((carry, metrics))
    for phase in attack.phases:
      self.assertIn('loss', metrics[phase.name])
    chex.assert_trees_all_equal_shapes_and_dtypes(carry.model, model())

  @parameterized.product(name=PERTURBING)
  def test_model_is_bit_identical(self, name):
    chex.assert_trees_all_equal(finished(name)[0].model, model())

  @parameterized.product(name=PERTURBING)
  def test_extra_is_a_trigger_that_keeps_images_in_range(self, name):
    trigger = build(name, hparams(name)).trigger
    params = finished(name)[0].extra
    chex.assert_trees_all_equal_shapes_and_dtypes(params, trigger.init(KEY))
    for image in (
      batch()['image'][0],
      jnp.zeros((8, 8, 3)),
      jnp.ones((8, 8, 3)),
    ):
      out = trigger.apply(params, image, KEY)
      chex.assert_equal_shape([out, image])
      self.assertEqual(out.dtype, jnp.float32)
      self.assertBetween(float(out.min()), 0, 1)
      self.assertBetween(float(out.max()), 0, 1)
      self.assertGreater(float(jnp.abs(out - image).max()), 0)

  @parameterized.product(name=PERTURBING)
  def test_zero_radius_changes_no_image(self, name):
    hp = dataclasses.replace(hparams(name), eps=0.0)
    carry, _ = one_step(name, hp, model(), KEY)
    trigger = build(name, hp).trigger
    image = batch()['image'][0]
    np.testing.assert_array_equal(trigger.apply(carry.extra, image, KEY), image)

  @parameterized.product(name=NAMES)
  def test_jit_equals_eager(self, name):
    with jax.default_matmul_precision('highest'):
      eager = one_step(name, hparams(name), model(), KEY)
    chex.assert_trees_all_close(stepped(name), eager, rtol=1e-4, atol=1e-6)

  @parameterized.product(name=NAMES)
  def test_stack_equals_loop(self, name):
    states = [model(seed) for seed in range(3)]
    run = functools.partial(one_step, name, hparams(name))
    lifted = jax.jit(jax.vmap(run, in_axes=(0, None)))(tree.stack(states), KEY)
    single = jax.jit(run)
    looped = [single(state, KEY) for state in states]
    chex.assert_trees_all_close(
      lifted, tree.stack(looped), rtol=1e-4, atol=1e-6
    )

  @parameterized.product(name=UNIVERSAL)
  def test_every_mode_chunk_and_device_count_gives_the_same(self, name):
    self.check_modes(name)

  @parameterized.product(name=tuple(n for n in NAMES if n not in UNIVERSAL))
  @pytest.mark.slow
  def test_every_mode_gives_the_same_for_the_others(self, name):
    self.check_modes(name)

  def check_modes(self, name):
    stack = tree.stack([start(name, model(seed)) for seed in range(3)])
    feed = training.make_feed(IMAGES, TARGETS)
    method = build(name, hparams(name))

    def run(carry, feed):
      return training.run_phases(method.phases, carry, {'pool': feed}, KEY)

    # A shard over the four devices of the tests; for loops see the sweep's.
    modes = [('map', 1), ('map', 2), ('vmap', None), ('shard', None)]
    with jax.default_matmul_precision('highest'):
      results = [
        sweep.lift(run, types.Exec(mode=mode, chunk=chunk))(stack, feed)
        for mode, chunk in modes
      ]
    for other in results[1:]:
      chex.assert_trees_all_close(other, results[0], rtol=1e-4, atol=1e-5)

  @parameterized.product(name=NAMES)
  def test_same_key_same_result_other_key_other_result(self, name):
    again = jax.jit(functools.partial(one_step, name, hparams(name)))
    chex.assert_trees_all_equal(again(model(), KEY), stepped(name))
    one, other = stepped(name, 0)[0], stepped(name, 1)[0]
    same = jax.tree.map(np.array_equal, one, other)
    self.assertFalse(all(jax.tree.leaves(same)))

  @parameterized.product(name=PERTURBING)
  def test_typed_keys_are_required(self, name):
    attack = build(name, hparams(name))
    legacy = np.zeros(2, np.uint32)
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      attack.phases[0].init(legacy, start(name, model()))
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      attack.trigger.init(legacy)

  @parameterized.product(name=NAMES)
  def test_float_hparams_do_not_recompile(self, name):
    @jax.jit
    @chex.assert_max_traces(1)
    def run(hp, state, key):
      return one_step(name, hp, state, key)

    chex.clear_trace_counter()
    hp = hparams(name)
    one = run(hp, model(), KEY)
    other = run(jax.tree.map(lambda x: 0.5 * x, hp), model(), KEY)
    chex.assert_trees_all_close(one, stepped(name), rtol=1e-4, atol=1e-6)
    same = jax.tree.map(np.array_equal, one[0], other[0])
    self.assertFalse(all(jax.tree.leaves(same)))

  @parameterized.product(name=UNIVERSAL)
  def test_effect_on_the_toy_world(self, name):
    victims, sleeping = toy.victims(), toy.defend('ft', DORMANT).model
    plain = toy.evaluate_stack(sleeping, victims)
    rates = toy_rates(name)
    woken = rates.pop('reactivated_asr')
    self.assertLessEqual(max(r['asr'] for r in plain), 0.5)
    for i, rate in enumerate(plain):
      self.assertGreater(woken[i], rate['asr'])
    for field, control in rates.items():
      self.assertTrue(np.all(woken > control), (field, woken, control))
      self.assertGreater(np.mean(woken - control), 0.1, field)

  @parameterized.product(name=NAMES)
  def test_reads_the_pool_without_augmentation(self, name):
    phases = build(name, hparams(name)).phases
    self.assertNotEmpty(phases)
    for phase in phases:
      self.assertEqual(phase.reads, 'pool')
      if name in PERTURBING:
        self.assertIs(phase.augment, False)


class ReactivationEntriesTest(
  entries.contract(
    reactivation.REGISTRY, hparams, kind='reactivation', filled=('needs',)
  )
):
  """The docstrings, hyper-parameters and taxonomy of every re-activation."""
