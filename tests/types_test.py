"""What is traced, what is static, and what cannot be changed."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import tree, types


@types.hparams
class Hp:
  """One field of each sort."""

  lr: float = 0.1
  eps: float | None = None
  quoted: 'float' = 2.0
  steps: int = 3
  norm: str = 'l2'
  layers: tuple[str, ...] = ('a',)
  adaptive: bool = True


class HparamsTest(parameterized.TestCase):
  def test_floats_are_leaves_and_all_else_is_structure(self):
    self.assertEqual(jax.tree.leaves(Hp()), [0.1, 2.0])
    self.assertEqual(jax.tree.leaves(Hp(eps=0.5)), [0.1, 0.5, 2.0])

  def test_rebuilt_from_leaves_it_is_equal(self):
    hp = Hp(lr=0.5, steps=7, layers=('b', 'c'))
    leaves, structure = jax.tree.flatten(hp)
    self.assertEqual(jax.tree.unflatten(structure, leaves), hp)

  def test_changing_a_float_does_not_retrace(self):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def fn(hp):
      return hp.lr * hp.steps

    self.assertAlmostEqual(float(fn(Hp(lr=0.5))), 1.5)
    self.assertAlmostEqual(float(fn(Hp(lr=2.0))), 6.0)

  @parameterized.parameters(
    dict(steps=4), dict(norm='l1'), dict(layers=()), dict(adaptive=False)
  )
  def test_changing_a_static_field_retraces(self, **changed):
    traces = []

    @jax.jit
    def fn(hp):
      traces.append(hp.steps)
      return hp.lr

    fn(Hp())
    fn(Hp(**changed))
    self.assertLen(traces, 2)

  def test_statics_are_python_values_inside_jit(self):
    @jax.jit
    def fn(hp, x):
      self.assertIsInstance(hp.lr, jax.core.Tracer)
      for _ in range(hp.steps):
        x = x * hp.lr if hp.norm == 'l2' else x
      return x

    np.testing.assert_allclose(fn(Hp(lr=0.5), 8.0), 1.0)

  def test_vmaps_over_floats(self):
    stacked = tree.stack([Hp(lr=lr) for lr in (0.1, 0.2, 0.4)])
    got = jax.vmap(lambda hp: hp.lr * hp.quoted * hp.steps)(stacked)
    np.testing.assert_allclose(got, [0.6, 1.2, 2.4], rtol=1e-6)

  def test_unlike_statics_cannot_be_stacked(self):
    with self.assertRaisesRegex(ValueError, 'static fields differ'):
      tree.stack([Hp(steps=1), Hp(steps=2)])

  def test_gradients_reach_floats(self):
    got = jax.grad(lambda hp: hp.lr**2 * hp.quoted)(Hp(lr=3.0))
    self.assertAlmostEqual(float(got.lr), 12.0)
    self.assertEqual(got.steps, 3)

  def test_frozen_and_keyword_only(self):
    with self.assertRaises(dataclasses.FrozenInstanceError):
      Hp().lr = 1.0
    with self.assertRaises(TypeError):
      Hp(0.1)


class PytreeTest(parameterized.TestCase):
  def test_model_states_are_trees_of_their_arrays(self):
    state = types.ModelState(params={'w': jnp.ones(2)}, batch_stats={})
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(state)
    self.assertIsInstance(doubled, types.ModelState)
    np.testing.assert_array_equal(doubled.params['w'], [2, 2])

  def test_states_are_frozen_and_keyword_only(self):
    state = types.ModelState(params={}, batch_stats={})
    with self.assertRaises(dataclasses.FrozenInstanceError):
      state.params = {}
    with self.assertRaises(TypeError):
      types.ModelState({}, {})
    new = dataclasses.replace(state, params={'w': 1})
    self.assertEqual((new.params, state.params), ({'w': 1}, {}))

  def test_carries_and_attack_states_go_through_scan(self):
    attack = types.AttackState(
      trigger={'x': jnp.zeros(2)}, kind=jnp.zeros(3, jnp.int8)
    )
    model = types.ModelState(params=jnp.zeros(()), batch_stats={})
    carry = types.Carry(model=model, extra=attack)

    def step(carry, _):
      return jax.tree.map(lambda x: x + 1, carry), None

    got, _ = jax.lax.scan(step, carry, length=4)
    np.testing.assert_array_equal(got.extra.trigger['x'], [4, 4])
    self.assertEqual(got.extra.kind.dtype, jnp.int8)


class StaticRecordsTest(parameterized.TestCase):
  @parameterized.parameters(
    (types.Exec, {}),
    (
      types.DataSpec,
      dict(
        name='toy',
        image_shape=(8, 8, 3),
        num_classes=4,
        mean=(0.5,),
        std=(1.0,),
      ),
    ),
    (
      types.AttackInfo,
      dict(
        name='badnets', label_mode='all2one', target_label=0, poison_ratio=0.1
      ),
    ),
  )
  def test_equal_records_hash_alike_and_are_frozen(self, cls, fields):
    a, b = cls(**fields), cls(**fields)
    self.assertEqual(a, b)
    self.assertEqual(hash(a), hash(b))
    name = dataclasses.fields(cls)[0].name
    with self.assertRaises(dataclasses.FrozenInstanceError):
      setattr(a, name, None)

  def test_codes_of_example_kinds_are_distinct(self):
    codes = {types.CLEAN, types.POISONED, types.COVER}
    self.assertEqual(codes, {0, 1, 2})

  def test_a_phase_reads_nothing_by_default(self):
    phase = types.Phase(
      'p', lambda *_: None, lambda *_: (None, {}), lambda s: s
    )
    self.assertEqual((phase.reads, phase.num_steps), ('none', 0))
    self.assertFalse(phase.augment)

  def test_a_defense_deploys_the_classifier_itself_by_default(self):
    classifier = object()
    defense = types.Defense(phases=())
    self.assertIs(defense.deploy(classifier, {'mask': 1}), classifier)
