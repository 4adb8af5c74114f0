"""What every defense of the registry must satisfy, in runs of a few steps.

What the tests must know of a method stands in `defense_facts`; what it
achieves is the matter of `defenses_effect_test`.
"""

import collections
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import (
  data,
  defenses,
  models,
  sweep,
  training,
  tree,
  types,
)
from tests import small_nets, toy
from tests.contracts import entries
from tests.contracts.defense_facts import FACTS

NET = models.make('tiny', data.spec('synthetic'), width=4)
KEY = jax.random.key(0)
NUM = 12
IMAGES = small_nets.random_images(0, NUM)
LABELS = np.arange(NUM, dtype=np.int32) % 4
NAMES = tuple(defenses.REGISTRY)
# Those that are tried chunk by chunk in every run of the tests.
QUICK = ('ft', 'ft_sam', 'clp', 'ep', 'bnp', 'fst', 'exact_purification')
AUGMENT = data.augment_fn(toy.dataset().spec)


def hparams(name, **changes):
  return defenses.REGISTRY[name].hparams(**FACTS[name].short | changes)


def stamp(images, key, index):
  """A trigger for those that must know it."""
  del key, index
  return images.at[:, -2:, -2:].set(1.0)


def build(name, hp, net=NET):
  entry = defenses.REGISTRY[name]
  if 'trigger_known' in entry.info.needs:
    return entry.make(net, hp, stamp=stamp)
  return entry.make(net, hp)


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

  def member(of_member):
    hp, state, seed = of_member
    return run(name, state, jax.random.key(seed), hp=hp)[0]

  return jax.jit(one), sweep.lift(member, types.Exec(mode='vmap')), traces


@functools.cache
def outcome(name, seed=0):
  """Carry and metrics."""
  return programs(name)[0](hparams(name), model(seed), KEY)


def finished(name, seed=0):
  return outcome(name, seed)[0]


@functools.cache
def stepwise(name):
  """Carry and metrics of a run of one step per chunk, and its traces.

  The latter are, for each phase, how often the network had been traced at the
  end of its chunks.
  """
  traces, seen = [], collections.defaultdict(set)

  def apply(*args, **kwargs):
    traces.append(None)
    return NET.apply(*args, **kwargs)

  result = run(
    name,
    model(),
    net=NET._replace(apply=apply),
    chunk=1,
    on_chunk=lambda report: seen[report.phase].add(len(traces)),
  )
  return result, seen


def mapped(name, *members):
  """Carries of a stack of (changed hyper-parameters, seed of model, of key)."""
  stack = tree.stack(
    [
      (
        jax.tree.map(jnp.float32, hparams(name, **changes)),
        model(seed),
        jnp.int32(seed_of_key),
      )
      for changes, seed, seed_of_key in members
    ]
  )
  return programs(name)[1](stack)


@functools.cache
def stacked(name, seeds=(0, 1, 2)):
  return mapped(name, *(({}, seed, 0) for seed in seeds))


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

  @parameterized.product(name=QUICK)
  def test_chunk_by_chunk_equals_traced_as_a_whole(self, name):
    self.check_chunks(name)

  @parameterized.product(name=tuple(n for n in NAMES if n not in QUICK))
  @pytest.mark.slow
  def test_chunk_by_chunk_of_the_others(self, name):
    self.check_chunks(name)

  def check_chunks(self, name):
    result, seen = stepwise(name)
    chex.assert_trees_all_close(outcome(name), result, rtol=1e-4, atol=1e-5)
    for phase, counts in seen.items():  # all chunks share one program
      self.assertLen(counts, 1, phase)

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
  def test_maps_over_what_it_says(self, name):
    facts, info = FACTS[name], defenses.REGISTRY[name].info
    axes = set(info.vmappable) - {'classes'}  # which is an axis of its own
    self.assertGreaterEqual(axes, {'checkpoints', 'seeds', 'float_hparams'})
    self.assertEqual('thresholds' in axes, bool(facts.threshold))
    members = (facts.threshold, 0, 0), (facts.sensitive, 1, 0), ({}, 2, 1)
    got = mapped(name, *members)
    for i, (changes, seed, seed_of_key) in enumerate(members):
      hp, key = hparams(name, **changes), jax.random.key(seed_of_key)
      want, _ = programs(name)[0](hp, model(seed), key)
      # Large steps of optimizers make more of rounding than the short runs do.
      chex.assert_trees_all_close(tree.take(got, i), want, rtol=1e-3, atol=1e-4)
    if facts.threshold:
      self.assertTrue(differ(tree.take(got, 0), finished(name)))

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
  def test_reads_what_its_access_allows(self, name):
    info = defenses.REGISTRY[name].info
    allowed = {'none'}
    if 'clean_labelled' in info.needs:
      allowed |= {'clean', 'clean_fit', 'clean_val'}
    if 'poisoned_train_set' in info.needs:
      allowed.add('train')
    # No phase can read test data, nor a trigger: there is no feed of them, and
    # who is handed a trigger says so.
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

  @parameterized.product(name=NAMES)
  def test_names_agree(self, name):
    defense = build(name, hparams(name))
    self.assertEqual(defense.info, name)
    phases = [phase.name for phase in defense.phases]
    self.assertNotEmpty(phases)
    self.assertLen(set(phases), len(phases))


class DefenseEntriesTest(
  entries.contract(
    defenses.REGISTRY, hparams, kind='defense', filled=('outputs',)
  )
):
  """The docstrings, hyper-parameters and taxonomy of every defense."""
