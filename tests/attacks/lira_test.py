"""LIRA: the bound, the two steps of the first phase, the copy, the second."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from bdjax import attacks, models, optim, registry, training, types
from tests.eval import linear

KEY = jax.random.key(0)
SPEC = dataclasses.replace(
  linear.spec(shape=(8, 8, 3), num_classes=4), std=(0.5, 0.25, 1.0)
)
NET = linear.classifier(SPEC)  # counts its passes in training mode
NUM = 12
IMAGES = np.random.default_rng(0).integers(
  0, 256, (NUM, 8, 8, 3), dtype=np.uint8
)
LABELS = np.arange(NUM, dtype=np.int32) % 4
STD = np.array(SPEC.std, np.float32).reshape(1, 1, 1, 3)
SMALL = dict(width=2, trigger_epochs=2, eps=0.2, lr_generator=0.01)
BATCH = {
  'image': jnp.asarray(IMAGES) / 255,
  'label': jnp.asarray(LABELS),
  'index': jnp.arange(NUM),
  'mask': jnp.ones(NUM, bool),
}


@functools.cache
def setup(**hparams):
  attack = attacks.lira(SPEC, attacks.LiraHParams(**(SMALL | hparams)))
  attack = attack._replace(
    stamp=jax.jit(attack.stamp),
    objective=jax.jit(attack.objective, static_argnums=1),
  )
  return attack, attack.init(KEY, IMAGES, LABELS)


def unlike(state):
  """The state with a T that is not ξ."""
  attack, _ = setup()
  other = attack.init(jax.random.key(1), IMAGES, LABELS).trigger['fixed']
  return dataclasses.replace(state, trigger=state.trigger | {'fixed': other})


@functools.cache
def net():
  return models.strided_autoencoder(SPEC, widths=(2, 4, 8, 16))


@functools.cache
def passes(train):
  """The generator's pass over the batch, compiled."""
  apply = functools.partial(net().apply, train=train)
  return jax.jit(lambda generator: apply(generator, BATCH['image']))


def by_hand(generator, *, train, eps=0.2):
  change, after = passes(train)(generator)
  return jnp.clip(BATCH['image'] + eps * STD * change, 0, 1), after


def loss_of(model, images, labels):
  logits, after = NET.apply(model, images, train=True)
  return training.cross_entropy(logits, labels), after


@functools.cache
def phases(**hparams):
  attack, _ = setup(**hparams)
  return training.attack_phases(
    NET,
    attack,
    optim.sgd(optim.constant(0.1)),
    name='implant',
    num_epochs=5,
    batch_size=4,
    reads='train',
  )


class LiraTest(parameterized.TestCase):
  @parameterized.product(generator=('autoencoder', 'unet'), eps=(0.01, 0.3))
  def test_changes_are_bounded_in_normalized_units(self, generator, eps):
    attack, state = setup(generator=generator, eps=eps)
    got = attack.stamp(state, BATCH['image'], KEY, BATCH['index'])
    change = np.max(np.abs(got - BATCH['image']), (0, 1, 2))
    self.assertTrue(np.all(change <= eps * STD[0, 0, 0] + 1e-6))
    self.assertTrue(np.all(change > 0.01 * eps * STD[0, 0, 0]))

  def test_stamp_is_the_fixed_generator(self):
    attack, state = setup()
    state = unlike(state)
    got = attack.stamp(state, BATCH['image'], KEY, BATCH['index'])
    want, _ = by_hand(state.trigger['fixed'], train=False)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(
      attack.stamp(state, BATCH['image'][3:5], KEY, BATCH['index'][3:5]),
      want[3:5],
      atol=1e-6,
    )

  def test_objective_weighs_two_passes_and_moves_the_model_alone(self):
    attack, state = setup(alpha=0.25)
    state, model = unlike(state), NET.init(KEY)

    def loss_fn(state, model):
      loss, (_, after) = attack.objective(state, NET, model, BATCH, KEY)
      return loss, after

    run = jax.value_and_grad(loss_fn, argnums=1, has_aux=True)
    (loss, after), grads = run(state, model)
    self.assertEqual(float(after.batch_stats['passes']), 2)
    stamped, _ = by_hand(state.trigger['fixed'], train=False)

    def want_fn(model):
      clean, _ = loss_of(model, BATCH['image'], LABELS)
      return 0.25 * clean + 0.75 * loss_of(model, stamped, 0 * LABELS)[0]

    want, want_grads = jax.value_and_grad(want_fn)(model)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    chex.assert_trees_all_close(
      grads.params, want_grads.params, rtol=1e-4, atol=1e-6
    )

  def test_running_statistics_see_the_clean_batch_first(self):
    tiny = models.make('tiny', SPEC)
    attack, state = setup()
    model = tiny.init(KEY)
    _, (_, after) = attack.objective(state, tiny, model, BATCH, KEY)
    _, want = tiny.apply(model, BATCH['image'], train=True)
    stamped, _ = by_hand(state.trigger['fixed'], train=False)
    _, want = tiny.apply(want, stamped, train=True)
    chex.assert_trees_all_close(
      after.batch_stats, want.batch_stats, rtol=1e-5, atol=1e-6
    )

  def test_first_phase_is_adam_on_the_generator_then_sgd_on_the_model(self):
    _, state = setup(random_crop=0, random_rotation=0.0)
    first, _ = phases(random_crop=0, random_rotation=0.0)
    state, model = unlike(state), NET.init(KEY)
    carry = types.Carry(model=model, extra=state)
    clock = types.Clock(KEY, jnp.array(1), jnp.array(0), 6, 2)
    got, _ = jax.jit(first.step)(first.init(KEY, carry), BATCH, clock)
    trigger = state.trigger
    adam = optax.adam(0.01)

    def generator_loss(params):
      here = dataclasses.replace(trigger['learning'], params=params)
      return loss_of(model, by_hand(here, train=True)[0], 0 * LABELS)[0]

    grads = jax.jit(jax.grad(generator_loss))(trigger['learning'].params)
    _, opt_state = jax.jit(adam.update)(grads, trigger['optimizer'])
    new = got.rest[1].trigger
    chex.assert_trees_all_equal(new['fixed'], trigger['fixed'])
    chex.assert_trees_all_close(
      new['optimizer'][0].mu, opt_state[0].mu, rtol=1e-3, atol=1e-7
    )
    _, after = by_hand(trigger['learning'], train=True)
    chex.assert_trees_all_close(
      new['learning'].batch_stats, after.batch_stats, rtol=1e-4, atol=1e-6
    )
    stamped, _ = by_hand(trigger['fixed'], train=False)

    def model_loss(params):
      here = dataclasses.replace(model, params=params)
      clean, _ = loss_of(here, BATCH['image'], LABELS)
      return (clean + loss_of(here, stamped, 0 * LABELS)[0]) / 2

    want = jax.tree.map(
      lambda w, g: w - 0.01 * g,
      model.params,
      jax.jit(jax.grad(model_loss))(model.params),
    )
    chex.assert_trees_all_close(got.trained, want, rtol=1e-4, atol=1e-6)

  def test_copy_at_the_end_of_each_epoch(self):
    _, state = setup()
    first, _ = phases()
    here = first.init(KEY, types.Carry(model=NET.init(KEY), extra=state))
    step, seen = jax.jit(first.step), []
    for i in range(6):
      clock = types.Clock(
        jax.random.key(i), jnp.array(i), jnp.array(i // 3), 6, 2
      )
      before = here.rest[1].trigger
      here, _ = step(here, BATCH, clock)
      seen.append(here.rest[1].trigger['fixed'])
      if i % 3 == 0:
        chex.assert_trees_all_equal(seen[-1], before['learning'])
      else:
        chex.assert_trees_all_equal(seen[-1], seen[-2])
    kernel = lambda net: net.params['down0_conv']['kernel']
    self.assertFalse(np.array_equal(kernel(seen[0]), kernel(seen[3])))
    trigger = first.finish(here).extra.trigger
    chex.assert_trees_all_equal(trigger['fixed'], trigger['learning'])
    self.assertFalse(np.array_equal(kernel(seen[5]), kernel(trigger['fixed'])))

  def test_second_phase_leaves_the_trigger(self):
    _, state = setup()
    first, second = phases()
    self.assertEqual((first.num_epochs, second.num_epochs), (2, 3))
    self.assertEqual((first.reads, first.batch_size), ('train', 4))
    carry = types.Carry(model=NET.init(KEY), extra=unlike(state))
    feed = training.make_feed(IMAGES, LABELS)
    carry, _ = training.run_phases((second,), carry, {'train': feed}, KEY)
    chex.assert_trees_all_equal(carry.extra, unlike(state))

  def test_update_is_the_first_phase_s_alone(self):
    attack, state = setup()
    same, _ = attack.update(state, NET, NET.init(KEY), BATCH, KEY)
    chex.assert_trees_all_equal(same, state)

  def test_all_to_all(self):
    attack, state = setup(label_mode='all2all', label_shift=2)
    self.assertIsNone(attack.info.target_label)
    np.testing.assert_array_equal(attack.relabel(LABELS), (LABELS + 2) % 4)
    model = NET.init(KEY)
    loss, _ = attack.objective(state, NET, model, BATCH, KEY)
    stamped, _ = by_hand(state.trigger['fixed'], train=False)
    want = 0.5 * loss_of(model, BATCH['image'], LABELS)[0]
    want += 0.5 * loss_of(model, stamped, (LABELS + 2) % 4)[0]
    np.testing.assert_allclose(loss, want, rtol=1e-5)

  @parameterized.parameters(
    (dict(eps=-0.1), 'eps=-0.1'),
    (dict(alpha=1.5), 'alpha=1.5'),
    (dict(generator='unett'), "Did you mean 'unet'"),
    (dict(width=0), 'width=0'),
    (dict(trigger_epochs=0), 'trigger_epochs=0'),
    (dict(lr_generator=-1.0), 'lr_generator=-1.0'),
    (dict(target_label=4), 'target_label=4'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_the_model_needs_epochs_of_its_own(self):
    with self.assertRaisesRegex(ValueError, 'trigger_epochs=5.*lower it'):
      phases(trigger_epochs=5)

  def test_images_must_be_even(self):
    with self.assertRaisesRegex(ValueError, 'cannot be halved'):
      attacks.lira(linear.spec((7, 7, 3), 4))

  def test_takes_no_assets(self):
    with self.assertRaisesRegex(registry.UnknownName, 'asset'):
      attacks.lira(SPEC, assets={'mask': IMAGES})


if __name__ == '__main__':
  absltest.main()
