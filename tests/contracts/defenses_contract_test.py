"""What every defense of the registry must satisfy.

What the tests must know of a method, and what it achieves on the toy world,
stands in `defense_facts`.
"""

import collections
import dataclasses
import doctest
import functools
import json
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import (
  data,
  defenses,
  eval,
  models,
  registry,
  sweep,
  training,
  tree,
  types,
)
from tests import small_nets, toy
from tests.contracts.defense_facts import FACTS

NET = models.make('tiny', data.spec('synthetic'), width=4)
KEY = jax.random.key(0)
NUM = 12
IMAGES = small_nets.random_images(0, NUM)
LABELS = np.arange(NUM, dtype=np.int32) % 4
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
EFFECTS = tuple(
  (name, i) for name in NAMES for i in range(len(FACTS[name].effects))
)
AUGMENT = data.augment_fn(toy.dataset().spec)


def hparams(name, **changes):
  return defenses.REGISTRY[name].hparams(**FACTS[name].short | changes)


def build(name, hp, net=NET):
  return defenses.REGISTRY[name].make(net, hp)


@functools.cache
def model(seed=0):
  return NET.init(jax.random.key(seed))


def feeds():
  """Everything a defense may read; the training set doubles as poisoned."""
  clean = training.make_feed(IMAGES, LABELS)
  return {'clean': clean, 'train': clean}


def run(name, state, key=KEY, net=NET, hp=None, **kwargs):
  """The whole method; a few steps."""
  carry = types.Carry(model=state, extra={})
  phases = build(name, hp or hparams(name), net).phases
  return training.run_phases(
    phases, carry, feeds(), key, augment=AUGMENT, **kwargs
  )


@functools.cache
def programs(name):
  """The whole method, compiled for one model and for a stack, and its traces.

  The list grows with each trace of the first.
  """
  traces = []

  def one(hp, state, key):
    traces.append(None)
    return run(name, state, key, hp=hp)

  stack = lambda state, key: run(name, state, key)[0]
  return jax.jit(one), sweep.lift(stack, types.Exec(mode='vmap')), traces


@functools.cache
def outcome(name, seed=0):
  """Carry and metrics."""
  return programs(name)[0](hparams(name), model(seed), KEY)


def finished(name, seed=0):
  return outcome(name, seed)[0]


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
    carry, metrics = outcome(name)
    chex.assert_trees_all_equal_shapes_and_dtypes(carry.model, model())
    chex.assert_tree_all_finite((carry, metrics))
    for of_phase in metrics.values():
      for value in of_phase.values():
        chex.assert_rank(value, 1)

  @parameterized.product(name=NAMES)
  def test_frozen_leaves_are_bit_identical_and_others_move(self, name):
    before, after = leaves(model().params), leaves(finished(name).model.params)
    facts = FACTS[name]
    moved = {p for p in before if not np.array_equal(before[p], after[p])}
    free = {p for p in before if not p.startswith(facts.frozen or ('\0',))}
    self.assertLessEqual(moved, free)
    if facts.moves == 'all':
      self.assertEqual(moved, free)
    elif facts.moves == 'some':
      self.assertNotEmpty(moved)
    else:
      self.assertEmpty(moved)
      self.assertNotEmpty(jax.tree.leaves(finished(name).extra))

  @parameterized.product(name=NAMES)
  def test_running_statistics_move_where_the_method_says_so(self, name):
    before = leaves(model().batch_stats)
    after = leaves(finished(name).model.batch_stats)
    for path in before:
      moved = not np.array_equal(before[path], after[path])
      self.assertEqual(moved, FACTS[name].train_bn, path)

  @parameterized.product(name=NAMES)
  def test_chunk_by_chunk_equals_traced_as_a_whole(self, name):
    stepwise = run(name, model(), chunk=1)
    chex.assert_trees_all_close(outcome(name), stepwise, rtol=1e-4, atol=1e-5)

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
    program = programs(name)[0]
    again, _ = program(hparams(name), model(), KEY)
    chex.assert_trees_all_equal(again, finished(name))
    other, _ = program(hparams(name), model(), jax.random.key(1))
    self.assertEqual(differ(other, finished(name)), FACTS[name].uses_key)

  @parameterized.product(name=NAMES)
  def test_typed_keys_are_required(self, name):
    with self.assertRaisesRegex(TypeError, 'jax.random.key'):
      run(name, model(), np.zeros(2, np.uint32))

  @parameterized.product(name=NAMES)
  def test_float_hparams_do_not_recompile(self, name):
    hp, one = hparams(name), outcome(name)
    program, _, traces = programs(name)
    floats = [f for f in dataclasses.fields(hp) if f.type in (float, 'float')]
    self.assertNotEmpty(floats)
    count = len(traces)
    for field in floats:
      if not field.metadata.get('static', False):
        value = 0.5 * getattr(hp, field.name) + 0.01
        program(dataclasses.replace(hp, **{field.name: value}), model(), KEY)
    changed = dataclasses.replace(hp, **FACTS[name].sensitive)
    self.assertTrue(differ(program(changed, model(), KEY)[0], one[0]))
    self.assertLen(traces, count)

  @parameterized.product(name=NAMES)
  def test_chunks_share_one_program(self, name):
    traces, seen = [], collections.defaultdict(set)

    def apply(*args, **kwargs):
      traces.append(None)
      return NET.apply(*args, **kwargs)

    run(
      name,
      model(),
      net=NET._replace(apply=apply),
      chunk=1,
      on_chunk=lambda report: seen[report.phase].add(len(traces)),
    )
    for phase, counts in seen.items():
      self.assertLen(counts, 1, phase)

  @parameterized.product(name=NAMES)
  def test_reads_what_its_access_allows(self, name):
    info = defenses.REGISTRY[name].info
    allowed = {'none'}
    if 'clean_labelled' in info.needs:
      allowed |= {'clean', 'clean_fit', 'clean_val'}
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
    effect = FACTS[name].effects[i]
    hp = defenses.REGISTRY[name].hparams(**effect.hparams)
    carry, victims = toy.defend(name, hp), toy.victims()
    defense = build(name, hp, toy.classifier())
    for k in range(toy.SEEDS):
      member = tree.take(carry, k)
      deployed = defense.deploy(toy.classifier(), member.extra)
      rates = toy.evaluate(member.model, victims[k], deployed)
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
