"""What every defense of the registry achieves on the toy world.

What it should stands in `defense_facts`.
"""

import jax
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import defenses, eval, training, tree, types
from tests import toy
from tests.contracts.defense_facts import FACTS

EFFECTS = tuple(
  (name, i)
  for name in defenses.REGISTRY
  for i in range(len(FACTS[name].effects))
)
# In the time of any other: all of these.
QUICK = ('ft', 'clp', 'ep', 'bnp', 'fst')


class DefensesEffectTest(parameterized.TestCase):
  @parameterized.parameters(*(one for one in EFFECTS if one[0] in QUICK))
  def test_effect_on_the_toy_world(self, name, i):
    self.check_effect(name, i)

  @parameterized.parameters(*(one for one in EFFECTS if one[0] not in QUICK))
  @pytest.mark.slow
  def test_effect_of_the_others_on_the_toy_world(self, name, i):
    self.check_effect(name, i)

  def check_effect(self, name, i):
    effect = FACTS[name].effects[i]
    entry = defenses.REGISTRY[name]
    hp = entry.hparams(**effect.hparams)
    carry, victims = toy.defend(name, hp), toy.victims()
    asr = []
    for k in range(toy.SEEDS):
      member = tree.take(carry, k)
      defense = toy.make_defense(name, hp, victims[k])
      deployed = defense.deploy(toy.classifier(), member.extra)
      rates = toy.evaluate(member.model, victims[k], deployed)
      self.assertGreaterEqual(rates['c_acc'], effect.c_acc)
      self.assertBetween(rates['asr'], *effect.asr)
      asr.append(rates['asr'])
    self.assertLessEqual(np.median(asr), effect.median_asr)


class NoDefenseTest(parameterized.TestCase):
  """The zero of every table: a defense that does nothing."""

  def test_rates_stay_and_der_is_one_half(self):
    victim = toy.victim()
    nothing = types.Defense(phases=(), info='nothing')
    carry = types.Carry(model=victim.model, extra={})
    after, metrics = training.run_phases(
      nothing.phases, carry, {}, jax.random.key(0)
    )
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
