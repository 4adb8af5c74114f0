"""What every defense of the registry must satisfy.

What makes a method short enough stands in `SHORT`, the leaves it promises to
leave alone in `FROZEN`, what it does to running statistics in `TRAIN_BN`, and
what it achieves on the toy world in `EFFECT`.
"""

import dataclasses
import doctest
import functools
import json
import sys
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import (
  data,
  defenses,
  eval,
  registry,
  sweep,
  training,
  tree,
  types,
)
from tests import small_nets, toy

NET = small_nets.conv_net(size=8, classes=4, width=4)
KEY = jax.random.key(0)
NUM, BATCH = 12, 4
IMAGES = small_nets.random_images(0, NUM)
LABELS = np.arange(NUM, dtype=np.int32) % 4
SHORT: dict[str, dict] = {
  'ft': dict(epochs=1, batch_size=BATCH),
  'ft_sam': dict(epochs=1, batch_size=BATCH),
}
# Beginnings of paths in `params` that stay bit-identical.
FROZEN: dict[str, tuple[str, ...]] = {}
# Methods whose running statistics move; those of all others stay.
TRAIN_BN = ('ft', 'ft_sam')


class Effect(NamedTuple):
  """What a setting does to each of three BadNets models of the toy world.

  Attributes:
    hparams: the setting.
    asr: (least, largest) attack success rate that is left of 1.0.
    c_acc: least clean accuracy that is left of 1.0.
  """

  hparams: dict
  asr: tuple[float, float]
  c_acc: float


_TUNE = dict(epochs=20, batch_size=32)
EFFECT: dict[str, tuple[Effect, ...]] = {
  # The baseline: at the rate at which FT-SAM removes the backdoor it stays.
  'ft': (
    Effect(dict(lr=0.1, **_TUNE), asr=(0.8, 1.0), c_acc=0.98),
    Effect(dict(lr=1.0, **_TUNE), asr=(0.0, 0.5), c_acc=0.95),
  ),
  'ft_sam': (Effect(dict(lr=0.1, **_TUNE), asr=(0.0, 0.4), c_acc=0.95),),
}
HEADINGS = (
  'Access:',
  'Space:',
  'BN:',
  'Guarantees:',
  'Divergences:',
  'Cost:',
  'Args:',
  'Returns:',
  'Raises:',
  'Example:',
  'References:',
)
NAMES = tuple(defenses.REGISTRY)
EFFECTS = tuple((name, i) for name in NAMES for i in range(len(EFFECT[name])))
AUGMENT = data.augment_fn(toy.dataset().spec)


def hparams(name, **changes):
  return defenses.REGISTRY[name].hparams(**SHORT.get(name, {}) | changes)


def build(name, hp, net=NET):
  return defenses.REGISTRY[name].make(net, hp)


@functools.cache
def model(seed=0):
  return NET.init(jax.random.key(seed))


def batch(size=BATCH):
  return {
    'image': jnp.asarray(IMAGES[:size], jnp.float32) / 255,
    'label': jnp.asarray(LABELS[:size]),
    'index': jnp.arange(size),
    'mask': jnp.ones(size, bool),
  }


def one_step(name, hp, state, key):
  """Carry and metrics after init, one step and finish of the first phase."""
  phase = build(name, hp).phases[0]
  zero = jnp.zeros((), jnp.int32)
  carry = phase.init(key, types.Carry(model=state, extra={}))
  after, metrics = phase.step(
    carry, batch(), types.Clock(key, zero, zero, 4, 2)
  )
  return phase.finish(after), metrics


@functools.cache
def step_program(name):
  """`one_step` compiled, and a list that grows with each trace."""
  traces = []

  def run(hp, state, key):
    traces.append(None)
    return one_step(name, hp, state, key)

  return jax.jit(run), traces


@functools.cache
def stepped(name):
  return step_program(name)[0](hparams(name), model(), KEY)


def run(name, state, key=KEY, net=NET, **kwargs):
  """The whole method on the clean set; three steps where it tunes."""
  feeds = {'clean': training.make_feed(IMAGES, LABELS)}
  carry = types.Carry(model=state, extra={})
  phases = build(name, hparams(name), net).phases
  return training.run_phases(
    phases, carry, feeds, key, augment=AUGMENT, **kwargs
  )


@functools.cache
def programs(name):
  """The whole method, compiled for one model and for a stack."""
  one = lambda state, key: run(name, state, key)[0]
  return jax.jit(one), sweep.lift(one, types.Exec(mode='vmap'))


@functools.cache
def finished(name, seed=0):
  return programs(name)[0](model(seed), KEY)


@functools.cache
def stacked(name, seeds=(0, 1, 2)):
  states = tree.stack([model(seed) for seed in seeds])
  return programs(name)[1](states, KEY)


def leaves(a):
  paths = jax.tree_util.tree_leaves_with_path(a)
  return {tree.path_string(path): np.asarray(leaf) for path, leaf in paths}


def differ(a, b):
  same = jax.tree.map(np.array_equal, a, b)
  return not all(jax.tree.leaves(same))


class DefensesContractTest(parameterized.TestCase):
  @parameterized.product(name=NAMES)
  def test_keeps_shapes_and_dtypes_and_returns_finite_numbers(self, name):
    carry, metrics = stepped(name)
    chex.assert_trees_all_equal_shapes_and_dtypes(carry.model, model())
    chex.assert_tree_all_finite((carry, metrics))
    for value in metrics.values():
      chex.assert_shape(value, ())

  @parameterized.product(name=NAMES)
  def test_frozen_leaves_are_bit_identical_and_others_move(self, name):
    before, after = leaves(model().params), leaves(finished(name).model.params)
    for path in before:
      is_frozen = path.startswith(FROZEN.get(name, ()))
      same = np.array_equal(before[path], after[path])
      self.assertEqual(same, is_frozen, path)

  @parameterized.product(name=NAMES)
  def test_running_statistics_move_where_the_method_says_so(self, name):
    before = leaves(model().batch_stats)
    after = leaves(finished(name).model.batch_stats)
    for path in before:
      moved = not np.array_equal(before[path], after[path])
      self.assertEqual(moved, name in TRAIN_BN, path)

  @parameterized.product(name=NAMES)
  def test_jit_equals_eager(self, name):
    eager = one_step(name, hparams(name), model(), KEY)
    chex.assert_trees_all_close(stepped(name), eager, rtol=1e-4, atol=1e-6)

  @parameterized.product(name=NAMES)
  def test_stack_equals_loop(self, name):
    looped = tree.stack([finished(name, seed) for seed in range(3)])
    chex.assert_trees_all_close(stacked(name), looped, rtol=1e-4, atol=1e-5)

  @parameterized.product(name=NAMES)
  def test_members_of_a_stack_do_not_see_each_other(self, name):
    ours, other = stacked(name), stacked(name, (0, 7, 2))
    for i in (0, 2):
      chex.assert_trees_all_equal(tree.take(ours, i), tree.take(other, i))
    self.assertTrue(differ(tree.take(ours, 1), tree.take(other, 1)))

  @parameterized.product(name=NAMES)
  def test_same_key_same_result_other_key_other_result(self, name):
    again = programs(name)[0](model(), KEY)
    chex.assert_trees_all_equal(again, finished(name))
    other = programs(name)[0](model(), jax.random.key(1))
    self.assertTrue(differ(other, finished(name)))

  @parameterized.product(name=NAMES)
  def test_typed_keys_are_required(self, name):
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      run(name, model(), np.zeros(2, np.uint32))

  @parameterized.product(name=NAMES)
  def test_float_hparams_do_not_recompile(self, name):
    hp, one = hparams(name), stepped(name)
    program, traces = step_program(name)
    floats = [f for f in dataclasses.fields(hp) if f.type in (float, 'float')]
    self.assertNotEmpty(floats)
    for field in floats:
      value = 0.5 * getattr(hp, field.name) + 0.01
      program(dataclasses.replace(hp, **{field.name: value}), model(), KEY)
    other, _ = program(dataclasses.replace(hp, lr=0.5), model(), KEY)
    self.assertTrue(differ(other.model.params, one[0].model.params))
    self.assertLen(traces, 1)

  @parameterized.product(name=NAMES)
  def test_epochs_share_one_program(self, name):
    traces, seen = [], []

    def apply(*args, **kwargs):
      traces.append(None)
      return NET.apply(*args, **kwargs)

    hp = hparams(name, epochs=3)
    training.run_phases(
      build(name, hp, NET._replace(apply=apply)).phases,
      types.Carry(model=model(), extra={}),
      {'clean': training.make_feed(IMAGES, LABELS)},
      KEY,
      on_chunk=lambda report: seen.append(len(traces)),
    )
    self.assertLen(seen, 3)
    self.assertLen(set(seen), 1)

  @parameterized.product(name=NAMES)
  def test_reads_what_its_access_allows(self, name):
    info = defenses.REGISTRY[name].info
    allowed = {'none'}
    if 'clean_labelled' in info.needs:
      allowed.add('clean')
    if 'poisoned_train_set' in info.needs:
      allowed.add('train')
    # No phase can read test data, nor a trigger: there is no feed of them.
    for phase in build(name, hparams(name)).phases:
      self.assertIn(phase.reads, allowed)

  @parameterized.product(name=NAMES)
  def test_deployed_model_is_a_function_of_what_is_stored(self, name):
    carry = finished(name)
    images = jnp.asarray(IMAGES, jnp.float32) / 255
    deployed = build(name, hparams(name)).deploy(NET, carry.extra)
    want = deployed.apply(carry.model, images)[0]
    stored = jax.tree.map(np.array, jax.device_get(carry))
    deployed = build(name, hparams(name)).deploy(NET, stored.extra)
    got = deployed.apply(stored.model, images)[0]
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(*EFFECTS)
  def test_effect_on_the_toy_world(self, name, i):
    effect = EFFECT[name][i]
    hp = defenses.REGISTRY[name].hparams(**effect.hparams)
    carry = toy.defend(name, hp)
    for rates in toy.evaluate_stack(carry.model, toy.victims()):
      self.assertGreaterEqual(rates['c_acc'], effect.c_acc)
      self.assertBetween(rates['asr'], *effect.asr)

  @parameterized.product(name=NAMES)
  def test_names_agree(self, name):
    defense = build(name, hparams(name))
    self.assertEqual(defense.info, name)
    phases = [phase.name for phase in defense.phases]
    self.assertNotEmpty(phases)
    self.assertLen(set(phases), len(phases))

  @parameterized.product(name=NAMES)
  def test_hparams_serialize_and_rebuild(self, name):
    cls = defenses.REGISTRY[name].hparams
    hp = hparams(name)
    text = json.dumps(dataclasses.asdict(hp))
    self.assertEqual(registry.make_hparams(cls, json.loads(text)), hp)
    with self.assertRaisesRegex(KeyError, 'has no hyper-parameter'):
      registry.make_hparams(cls, {'no_such_field': 0.1})

  @parameterized.product(name=NAMES)
  def test_hparams_are_documented(self, name):
    cls = defenses.REGISTRY[name].hparams
    documented = ''.join(base.__doc__ or '' for base in cls.__mro__[:-1])
    for field in dataclasses.fields(cls):
      self.assertIn(f'{field.name}: ', documented)

  @parameterized.product(name=NAMES)
  def test_info_is_complete(self, name):
    info = defenses.REGISTRY[name].info
    self.assertEqual((info.kind, info.paradigm), ('defense', 'backdoor'))
    for field in ('category', 'subcategory', 'paper', 'venue', 'outputs'):
      self.assertNotEmpty(getattr(info, field), field)
    self.assertBetween(info.year, 2017, 2030)
    self.assertEqual(info.status, 'implemented')

  @parameterized.product(name=NAMES)
  def test_docstring_has_all_headings(self, name):
    factory = defenses.REGISTRY[name].make
    module = sys.modules[factory.__module__]
    docs = f'{module.__doc__}\n{factory.__doc__}'
    for heading in HEADINGS:
      self.assertIn(heading, docs)

  @parameterized.product(name=NAMES)
  def test_docstring_examples_run(self, name):
    module = sys.modules[defenses.REGISTRY[name].make.__module__]
    result = doctest.testmod(module)
    self.assertGreater(result.attempted, 0)
    self.assertEqual(result.failed, 0)


class NoDefenseTest(parameterized.TestCase):
  """The zero of every table: a defense that does nothing."""

  def test_rates_stay_and_der_is_one_half(self):
    victim = toy.victim()
    nothing = types.Defense(phases=(), info='nothing')
    carry = types.Carry(model=victim.model, extra={})
    after, metrics = training.run_phases(nothing.phases, carry, {}, KEY)
    self.assertEqual(metrics, {})
    before = toy.evaluate(victim.model, victim)
    deployed = nothing.deploy(toy.classifier(), after.extra)
    rates = toy.evaluate(after.model, victim, deployed)
    self.assertEqual(rates, before)
    change = (before['asr'], rates['asr'], before['c_acc'], rates['c_acc'])
    self.assertEqual(eval.der(*change), 0.5)

  def test_target_class_is_not_attacked(self):
    victim = toy.victim()
    rates = toy.evaluate(victim.model, victim)
    labels, target = toy.dataset().test.labels, toy.attack().info.target_label
    self.assertEqual(rates['n_triggered_test'], np.sum(labels != target))
    self.assertLessEqual(rates['r_acc'], 1 - rates['asr'])

  def test_other_reserve_other_images(self):
    one, same, other = (toy.clean_feed.__wrapped__(s).index for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertFalse(np.array_equal(one, other))
