"""Packs: the same batches, the same models as one by one; what is refused."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, keys, sweep, training, tree, types
from bdjax.attacks import packs
from tests import toy

KEY = keys.root(0)
RATIOS = (0.02, 0.05, 0.1, 0.2)


@functools.cache
def members():
  """Eight attacks: four triggers, a ratio each, and two seeds."""
  spec, train, _ = toy.dataset()
  made = []
  for ratio in RATIOS:
    for make, cls in (
      (attacks.badnets, attacks.BadNetsHParams),
      (attacks.ftrojan, attacks.FTrojanHParams),
    ):
      attack = make(spec, cls(poison_ratio=ratio, target_label=1))
      state = attack.init(keys.stream(KEY, str(ratio)), *train)
      made.append((attack, state))
  return made


@functools.cache
def packed():
  return packs.pack(members(), *toy.dataset().train, key=KEY)


def batch(size=32):
  images, labels = toy.dataset().train
  return {
    'image': jnp.asarray(images[:size], jnp.float32) / 255,
    'label': jnp.asarray(labels[:size]),
    'index': jnp.arange(size),
    'mask': jnp.ones(size, bool),
  }


def phases(attack):
  return training.attack_phases(
    toy.classifier(),
    attack,
    training.optimizer(toy.RECIPE),
    augment=toy.augment(),
    name='implant',
    num_epochs=2,
    batch_size=32,
    reads='train',
  )


class PackTest(parameterized.TestCase):
  def test_batches_are_those_of_each_attack(self):
    for i, (attack, state) in enumerate(members()):
      got = packed().attack.poison(tree.take(packed().states, i), batch(), KEY)
      want = attack.poison(state, batch(), KEY)
      np.testing.assert_array_equal(got['kind'], want['kind'])
      np.testing.assert_array_equal(got['label'], want['label'])
      np.testing.assert_allclose(got['image'], want['image'], atol=1e-6)

  def test_room_is_that_of_the_largest(self):
    most = max(int(jnp.sum(state.kind)) for _, state in members())
    self.assertEqual(packed().states.trigger['images'].shape[:2], (8, most))

  def test_stack_of_eight_equals_eight_single_runs(self):
    seeds = sweep.member_keys(KEY, 8, shared=False)
    net, feeds = toy.classifier(), {'train': toy.train_feed()}
    models = jax.vmap(net.init)(seeds)
    carry, _ = training.run_phases(
      phases(packed().attack),
      types.Carry(model=models, extra=packed().states),
      feeds,
      seeds,
      augment=toy.augment(),
      lift=sweep.lift,
    )
    for i, (attack, state) in enumerate(members()):
      start = types.Carry(model=tree.take(models, i), extra=state)
      alone, _ = training.run_phases(
        phases(attack), start, feeds, seeds[i], augment=toy.augment()
      )
      chex.assert_trees_all_close(
        tree.take(carry.model, i), alone.model, rtol=2e-3, atol=2e-4
      )

  def test_clean_label_keeps_labels(self):
    spec, train, _ = toy.dataset()
    attack = attacks.sig(spec, attacks.SigHParams(poison_ratio=0.1))
    state = attack.init(KEY, *train)
    pack = packs.pack([(attack, state)], *train, key=KEY)
    got = pack.attack.poison(tree.take(pack.states, 0), batch(), KEY)
    np.testing.assert_array_equal(got['label'], batch()['label'])

  @parameterized.parameters('wanet', 'bpp', 'blind', 'lira', 'input_aware')
  def test_attacks_in_the_loop_are_refused(self, name):
    attack = toy.attack(name)
    state = types.AttackState(trigger={}, kind=jnp.zeros(40, jnp.int8))
    with self.assertRaisesRegex(ValueError, f"'{name}' takes part"):
      packs.pack([(attack, state)], *toy.dataset().train, key=KEY)

  def test_a_stack_of_states_is_refused(self):
    attack, state = members()[0]
    with self.assertRaisesRegex(ValueError, 'give a single state'):
      packs.pack(
        [(attack, tree.stack([state, state]))], *toy.dataset().train, key=KEY
      )

  def test_images_between_levels_are_refused(self):
    dim = types.Trigger(
      init=lambda key: {},
      apply=lambda params, image, key: 0.999 * image,
      info='dim',
    )
    spec, train, _ = toy.dataset()
    attack = attacks.from_hparams(dim, spec, attacks.PoisonHParams())
    state = attack.init(KEY, *train)
    with self.assertRaisesRegex(ValueError, "'dim' are not on the 8-bit grid"):
      packs.pack([(attack, state)], *train, key=KEY)

  def test_no_member(self):
    with self.assertRaisesRegex(ValueError, 'holds no attack'):
      packs.pack([], *toy.dataset().train, key=KEY)

  @parameterized.parameters('init', 'stamp', 'relabel')
  def test_packs_have_no_trigger_for_further_images(self, name):
    with self.assertRaisesRegex(ValueError, 'attacks it was made of'):
      getattr(packed().attack, name)(KEY)

  def test_examples_outside_are_clean(self):
    data = batch() | {'index': jnp.arange(32) + 10**6}
    got = packed().attack.poison(tree.take(packed().states, 7), data, KEY)
    np.testing.assert_array_equal(got['image'], data['image'])
    self.assertFalse(np.any(got['kind']))


if __name__ == '__main__':
  absltest.main()
