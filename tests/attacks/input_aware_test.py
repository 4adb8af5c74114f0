"""Input-aware: slots, two phases, one joint loss, triggers of their own."""

import dataclasses
import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from bdjax import attacks, models, registry, training, types
from tests.eval import linear

KEY = jax.random.key(0)
module = importlib.import_module('bdjax.attacks.input_aware')
SPEC = dataclasses.replace(
  linear.spec(shape=(8, 8, 3), num_classes=4), std=(0.5, 0.25, 1.0)
)
NET = linear.classifier(SPEC)
NUM = 40
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(NUM, dtype=np.int32) % 4
SMALL = dict(widths=(2,), num_others=5, mask_epochs=2)
IMPLANT = types.Phase(
  'implant', None, None, None, num_epochs=6, batch_size=10, reads='train'
)


@functools.cache
def setup(**hparams):
  """The attack, its functions compiled, and its state."""
  attack = attacks.input_aware(
    SPEC, attacks.InputAwareHParams(**(SMALL | hparams))
  )
  attack = attack._replace(
    poison=jax.jit(attack.poison),
    stamp=jax.jit(attack.stamp),
    update=jax.jit(attack.update, static_argnums=1),
  )
  return attack, attack.init(KEY, IMAGES, LABELS)


def batch(size=20):
  return {
    'image': jnp.asarray(IMAGES[:size]) / 255,
    'label': jnp.asarray(LABELS[:size]),
    'index': jnp.arange(size),
    'mask': jnp.ones(size, bool),
  }


def squash(z):
  return np.tanh(z) / (2 + 1e-7) + 0.5


@functools.cache
def forward(outputs, train):
  """A generator as one program."""
  net = models.encoder_decoder(SPEC, outputs=outputs, widths=(2,))
  return jax.jit(lambda state, x: net.apply(state, x, train=train))


def by_hand(state, donors, images, *, train):
  """(triggered images, patterns, masks) from the generators themselves."""
  z, _ = forward(3, train)(state.trigger['generator'], donors)
  m, _ = forward(1, False)(state.trigger['mask'], donors)
  pattern = squash(np.asarray(z))
  mask = squash(20 * squash(np.asarray(m)) - 10)
  return images + (pattern - images) * mask, pattern, mask


def distance(one, other):
  gap = (np.asarray(one) - other) / np.asarray(SPEC.std)
  return np.sqrt(np.mean(gap**2, (1, 2, 3)))


class InputAwareTest(parameterized.TestCase):
  def test_slots_of_the_published_batch(self):
    attack, state = setup()
    data = {
      'image': jnp.full((128, 8, 8, 3), 0.5),
      'label': jnp.arange(128) % 4,
      'index': jnp.arange(128),
    }
    data['image'] += jnp.linspace(0, 0.1, 128)[:, None, None, None]
    got = attack.poison(state, data, KEY)
    kind = np.asarray(got['kind'])
    np.testing.assert_array_equal(np.bincount(kind), [104, 12, 12])
    np.testing.assert_array_equal(kind[:24], [1] * 12 + [2] * 12)
    np.testing.assert_array_equal(got['label'][:12], 0)
    np.testing.assert_array_equal(got['label'][12:], data['label'][12:])
    np.testing.assert_array_equal(got['image'][24:], data['image'][24:])
    self.assertFalse(np.array_equal(got['image'][:24], data['image'][:24]))

  def test_images_by_the_formula(self):
    attack, state = setup(poison_ratio=0.2)
    got, clean = attack.poison(state, batch(), KEY), batch()['image']
    want, _, _ = by_hand(state, clean[:4], clean[:4], train=True)
    np.testing.assert_allclose(got['image'][:4], want, atol=1e-5)
    donors = clean[got['donor'][4:8]]
    want, _, _ = by_hand(state, donors, clean[4:8], train=True)
    np.testing.assert_allclose(got['image'][4:8], want, atol=1e-5)

  def test_donors_are_neither_their_slot_nor_its_partner(self):
    attack, state = setup(poison_ratio=0.2)
    seen = set()
    for i in range(40):
      got = attack.poison(state, batch(), jax.random.key(i))
      donor = np.asarray(got['donor'])
      slots = np.arange(20)
      np.testing.assert_array_equal(donor[:4], slots[:4])
      self.assertTrue(np.all(donor[4:8] != slots[4:8]))
      self.assertTrue(np.all(donor[4:8] != slots[:4]))
      seen.add(int(donor[4]))
    self.assertGreater(len(seen), 12)

  @parameterized.parameters(0.02, 0.04)
  def test_less_than_one_slot_is_used_at_times(self, ratio):
    attack, state = setup(poison_ratio=ratio)
    kinds = [
      np.asarray(attack.poison(state, batch(), jax.random.key(i))['kind'])
      for i in range(200)
    ]
    used = np.stack(kinds) != 0
    np.testing.assert_array_equal(used[:, 0], used[:, 1])
    self.assertFalse(used[:, 2:].any())
    self.assertAlmostEqual(used[:, 0].mean(), 20 * ratio, delta=0.12)

  def test_generator_rests_where_nothing_is_poisoned(self):
    attack, state = setup(poison_ratio=0.02)
    model = NET.init(KEY)
    for i in range(20):
      data = attack.poison(state, batch(), jax.random.key(i))
      after, _ = attack.update(state, NET, model, data, KEY)
      is_used = bool(np.any(data['kind'] == types.POISONED))
      moved = not np.array_equal(
        after.trigger['generator'].params['up0_2_conv']['kernel'],
        state.trigger['generator'].params['up0_2_conv']['kernel'],
      )
      self.assertEqual(moved, is_used)

  @parameterized.parameters(False, True)
  def test_update_is_adam_on_the_joint_loss(self, accumulate):
    hparams = dict(poison_ratio=0.2, lambda_div=0.5, lr_generator=0.02)
    attack, state = setup(accumulate_g_grads=accumulate, **hparams)
    model = NET.init(KEY)
    net = models.encoder_decoder(SPEC, outputs=3, widths=(2,))
    adam = optax.adam(0.02, b1=0.5, b2=0.999)
    params = state.trigger['generator'].params
    opt_state, total = adam.init(params), None
    for i in range(2):
      data = attack.poison(state, batch(), jax.random.key(i))
      generator = state.trigger['generator']
      clean, donor = batch()['image'], data['donor']
      apart = distance(clean[:4], np.asarray(clean[donor[4:8]]))
      masks = [
        by_hand(state, x, x, train=True)[2]
        for x in (clean[:4], clean[donor[4:8]])
      ]

      def loss_fn(
        params,
        generator=generator,
        data=data,
        clean=clean,
        apart=apart,
        donor=donor,
        masks=masks,
      ):
        here = dataclasses.replace(generator, params=params)
        one, here = net.apply(here, clean[:4], train=True)
        two, here = net.apply(here, clean[donor[4:8]], train=True)
        g1, g2 = (jnp.tanh(z) / (2 + 1e-7) + 0.5 for z in (one, two))
        mixed = jnp.concatenate(
          [
            clean[:4] + (g1 - clean[:4]) * masks[0],
            clean[4:8] + (g2 - clean[4:8]) * masks[1],
            clean[8:],
          ]
        )
        logits, _ = NET.apply(model, mixed, train=True)
        std = jnp.asarray(SPEC.std).reshape(1, 1, 1, -1)
        size = jnp.sqrt(jnp.mean(((g1 - g2) / std) ** 2, (1, 2, 3)))
        div = jnp.mean(apart / (size + 1e-7))
        loss = training.cross_entropy(logits, data['label'])
        return loss + 0.5 * div, here

      grads, here = jax.jit(jax.grad(loss_fn, has_aux=True))(params)
      if accumulate:
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        grads = total
      updates, opt_state = adam.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
      mask = state.trigger['mask']
      state, _ = attack.update(state, NET, model, data, KEY)
      after = state.trigger['generator']
      got, want = (s[0].mu for s in (state.trigger['optimizer'], opt_state))
      largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
      chex.assert_trees_all_close(got, want, atol=1e-3 * largest)
      chex.assert_trees_all_close(
        after.batch_stats, here.batch_stats, rtol=1e-4, atol=1e-5
      )
      chex.assert_trees_all_equal(state.trigger['mask'], mask)
      # Adam's steps are near to signs: what is 0 but for rounding, such as the
      # gradients of biases in front of norms, may go either way.
      name = 'up0_2_norm'
      chex.assert_trees_all_close(after.params[name], params[name], atol=1e-3)
      params, opt_state = after.params, state.trigger['optimizer']

  def test_model_and_generator_see_the_same_images(self):
    attack, state = setup(poison_ratio=0.2)
    data = attack.poison(state, batch(), KEY)
    seen = []

    def apply(model, images, **kwargs):
      jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
      return NET.apply(model, images, **kwargs)

    attack.update(state, NET._replace(apply=apply), NET.init(KEY), data, KEY)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[0], data['image'], atol=1e-6)

  def test_stamp_by_the_formula(self):
    attack, state = setup(quantize_mode='none')
    images, index = batch()['image'], jnp.arange(20)
    got = attack.stamp(state, images, KEY, index)
    want, pattern, mask = by_hand(state, images, images, train=False)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for part in (pattern, mask):
      self.assertGreater(np.ptp(part, axis=0).max(), 1e-5)

  def test_stamped_images_are_bytes(self):
    attack, state = setup()
    got = attack.stamp(state, batch()['image'], KEY, jnp.arange(20))
    levels = 255 * np.asarray(got)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)

  def test_cross_borrows_from_others(self):
    attack, state = setup(quantize_mode='none')
    images, index = batch()['image'], jnp.arange(20)
    got = attack.cross(state, images, KEY, index)
    others = np.asarray(state.trigger['others'], np.float32) / 255
    self.assertLen(others, 5)
    _, pattern, mask = by_hand(state, others, others, train=False)
    for i in range(20):
      wants = images[i][None] * (1 - mask) + pattern * mask
      gaps = np.abs(got[i][None] - wants).max((1, 2, 3))
      self.assertLess(gaps.min(), 1e-5)

  def test_mask_learns_alone_first(self):
    attack, state = setup(mask_density=0.1, lambda_norm=10.0)
    model = NET.init(KEY)
    mask, implant = attack.phases(NET, IMPLANT)
    self.assertEqual((mask.name, implant.name), ('mask', 'implant'))
    self.assertEqual((mask.num_epochs, implant.num_epochs), (2, 4))
    self.assertEqual((mask.batch_size, mask.reads), (10, 'train'))
    self.assertTrue(mask.augment)
    carry = types.Carry(model=model, extra=state)
    s = mask.init(KEY, carry)
    clock = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 8, 2)
    s, metrics = jax.jit(mask.step)(s, batch(), clock)
    after = mask.finish(s)
    chex.assert_trees_all_equal(after.model, model)
    for name, value in state.trigger.items():
      same = jax.tree.map(np.array_equal, after.extra.trigger[name], value)
      self.assertEqual(all(jax.tree.leaves(same)), name != 'mask')
    net = models.encoder_decoder(SPEC, outputs=1, widths=(2,))
    z, want = net.apply(state.trigger['mask'], batch()['image'], train=True)
    chex.assert_trees_all_close(
      after.extra.trigger['mask'].batch_stats, want.batch_stats, atol=1e-6
    )
    th = squash(20 * squash(np.asarray(z)) - 10)
    np.testing.assert_allclose(metrics['density'], th.mean(), rtol=1e-4)
    paid = 10 * np.mean(np.maximum(th - 0.1, 0))
    x, losses = np.asarray(batch()['image']), []
    for shift in range(1, 20):
      apart = distance(x, np.roll(x, -shift, 0))
      size = np.sqrt(np.mean((th - np.roll(th, -shift, 0)) ** 2, (1, 2, 3)))
      losses.append(paid + np.mean(apart / (size + 1e-7)))
    self.assertLess(np.abs(metrics['loss'] / np.array(losses) - 1).min(), 1e-4)

  def test_rate_of_the_mask_falls_at_epochs_10_and_20(self):
    attack, state = setup(mask_epochs=5)
    mask, _ = attack.phases(NET, IMPLANT)
    start = mask.init(KEY, types.Carry(model=NET.init(KEY), extra=state))
    place = lambda s: s.trained['up0_2_norm']['bias']
    step = jax.jit(mask.step)
    for epoch, rate in ((0, 0.01), (9, 0.01), (10, 1e-3), (20, 1e-4)):
      clock = types.Clock(KEY, jnp.int32(0), jnp.int32(epoch), 8, 25)
      after, _ = step(start, batch(), clock)
      # The first step of Adam is the rate.
      moved = jnp.abs(place(after) - place(start))
      np.testing.assert_allclose(moved, rate, rtol=1e-2)

  def test_some_epoch_must_be_left(self):
    attack, _ = setup(mask_epochs=6)
    with self.assertRaisesRegex(ValueError, 'mask_epochs=6.*lower it'):
      attack.phases(NET, IMPLANT)

  @pytest.mark.slow
  def test_equal_images_do_not_break_gradients(self):
    attack, state = setup(poison_ratio=0.2)
    same = batch() | {'image': jnp.full((20, 8, 8, 3), 0.5)}
    data = attack.poison(state, same, KEY)
    after, metrics = attack.update(state, NET, NET.init(KEY), data, KEY)
    chex.assert_tree_all_finite((after.trigger['generator'], metrics))
    mask, _ = attack.phases(NET, IMPLANT)
    s = mask.init(KEY, types.Carry(model=NET.init(KEY), extra=state))
    clock = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 8, 2)
    s, metrics = jax.jit(mask.step)(s, same, clock)
    chex.assert_tree_all_finite((s.trained, metrics))

  def test_single_images_have_no_covers(self):
    attack, state = setup(poison_ratio=0.5)
    data = attack.poison(state, batch(1), KEY)
    self.assertEqual(data['image'].shape, (1, 8, 8, 3))
    after, metrics = attack.update(state, NET, NET.init(KEY), data, KEY)
    self.assertEqual(float(metrics['diversity']), 0)
    chex.assert_tree_all_finite(after.trigger['generator'])

  def test_double_tanh(self):
    _, state = setup(double_tanh=True)
    donors = batch()['image']
    nets = module._nets(
      SPEC, attacks.InputAwareHParams(**SMALL, double_tanh=True)
    )
    pattern, _ = nets.patterns(state.trigger['generator'], donors, False)
    low, high = squash(np.tanh(-1.0)), squash(np.tanh(1.0))
    self.assertBetween(float(pattern.min()), low, high)
    self.assertBetween(float(pattern.max()), low, high)
    z, _ = nets.generator.apply(state.trigger['generator'], donors)
    np.testing.assert_allclose(
      pattern, squash(np.tanh(np.asarray(z))), atol=1e-6
    )

  @parameterized.parameters(
    (dict(poison_ratio=0.6), 'lower one of them'),
    (dict(poison_ratio=0.0), 'poison_ratio=0.0'),
    (dict(mask_epochs=0), 'mask_epochs=0'),
    (dict(num_others=0), 'num_others=0'),
    (dict(widths=(0,)), 'widths'),
    (dict(lr_mask=-1.0), 'lr_mask=-1.0'),
    (dict(lr_generator=-1.0), 'lr_generator=-1.0'),
    (dict(lambda_div=-1.0), 'lambda_div=-1.0'),
    (dict(lambda_norm=-1.0), 'lambda_norm=-1.0'),
    (dict(stabilizer=0.0), 'stabilizer=0.0'),
    (dict(mask_density=2.0), 'mask_density=2.0'),
    (dict(quantize_mode='floor'), 'trunc'),
    (dict(target_label=4), 'target_label=4'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_takes_no_assets(self):
    with self.assertRaisesRegex(registry.UnknownName, 'asset'):
      attacks.input_aware(SPEC, assets={'mask': IMAGES})


if __name__ == '__main__':
  absltest.main()
