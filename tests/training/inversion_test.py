"""Inversion of a trigger: masks, votes, the scratch copy, the optimizers."""

import dataclasses
import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import checks, models, perturb, training, types
from bdjax.training import inversion
from tests import small_nets
from tests.defenses import inverting, tuning

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
IMAGES, LABELS = tuning.IMAGES, tuning.LABELS
CLOCK, batch, model = inverting.CLOCK, inverting.batch, inverting.model


def hparams(**values):
  longer = dict(pretrain_epochs=2, mask_epochs=3, attack_epochs=2)
  return training.GeneratorHParams(**inverting.SHORT | longer | values)


def run(phases, extra=None):
  feeds = {'clean': training.make_feed(IMAGES, LABELS)}
  carry = types.Carry(model=model(), extra=extra or {})
  return jax.jit(lambda c: training.run_phases(phases, c, feeds, KEY))(carry)


@functools.cache
def inverted(number=2):
  """The carry after pretraining and `number` rounds."""
  if number == 0:
    phases = (training.pretrain_generator(NET, hparams()),)
    return run(phases, {'other': jnp.arange(3)})[0]
  phases = training.invert_trigger(NET, hparams(), number)
  return run(phases, inverted(number - 1).extra)[0]


def shift_net(shift):
  """A stand-in for the U-Net that brightens by a parameter."""
  return models.UNet(
    init=lambda key: jnp.float32(shift),
    apply=lambda params, images: images + params,
    levels=1,
  )


class InversionTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, ['mask1', 'attack1', 'target1']), (2, ['mask2', 'attack2'])
  )
  def test_phases_of_a_round(self, number, names):
    phases = training.invert_trigger(NET, hparams(), number)
    self.assertEqual([phase.name for phase in phases], names)

  def test_what_a_round_leaves(self):
    extra = inverted().extra
    want = {'generator', 'mask', 'scratch', 'target', 'optimizers', 'other'}
    self.assertEqual(set(extra), want)
    np.testing.assert_array_equal(extra['other'], np.arange(3))
    self.assertEqual(extra['target'].dtype, jnp.int32)
    self.assertEqual(extra['mask'].shape, (8, 8, 8))

  def test_model_stays(self):
    chex.assert_trees_all_equal(inverted().model, model())

  def test_statistics_move_on_the_scratch_copy_alone(self):
    carry = inverted()
    got, old = carry.extra['scratch']['bn0'], model().batch_stats['bn0']
    x = (np.asarray(IMAGES, np.float64) / 255 - 0.5) / 0.25
    out = small_nets._conv(jnp.float32(x), model().params['stem'])
    kept = small_nets.DECAY**3  # one step an epoch
    want = kept * old['mean'] + (1 - kept) * np.mean(out, (0, 1, 2))
    np.testing.assert_allclose(got['mean'], want, rtol=1e-4, atol=1e-5)

  def test_mask_is_in_the_unit_interval(self):
    mask = np.asarray(inverted().extra['mask'])
    self.assertTrue(np.all((mask > 0) & (mask < 1)))

  def test_mask_loss_by_hand(self):
    phase = inversion.decouple_features(NET, hparams(), 'mask')
    state = phase.init(KEY, types.Carry(model=model(), extra={}))
    m = np.asarray(perturb.squash(state.trained))[None]
    _, metrics = phase.step(state, batch(), CLOCK)
    phi = NET.features(model(), batch()['image'], train=True)['penultimate_map']
    logits = lambda f: np.mean(f, (1, 2)) @ model().params['head']
    cross = lambda f: training.cross_entropy(logits(f), batch()['label'])
    want = cross(m * phi) - cross((1 - m) * phi)
    np.testing.assert_allclose(metrics['loss'], want, rtol=1e-4, atol=1e-5)

  def test_an_identity_keeps_predictions_and_costs_nothing_in_images(self):
    state, hp = model(), hparams()
    with self.swapped(shift_net(0.0)):
      phase = training.pretrain_generator(NET, hp)
    state = phase.init(KEY, types.Carry(model=state, extra={}))
    _, metrics = phase.step(state, batch(), CLOCK)
    self.assertEqual(float(metrics['agreement']), 1.0)
    self.assertEqual(float(metrics['image_mse']), 0.0)

  def test_pretraining_comes_nearer_to_an_identity(self):
    phase = training.pretrain_generator(
      NET, hparams(pretrain_epochs=60, generator_lr=0.03, width=8)
    )
    _, metrics = run((phase,))
    image_mse = metrics['pretrain']['image_mse']
    self.assertLess(image_mse[-1], 0.5 * image_mse[0])

  @parameterized.product(shift=(0.01, 0.5), is_targeted=(False, True))
  def test_attacker_loss_by_hand(self, shift, is_targeted):
    mask = np.random.default_rng(0).uniform(size=(8, 8, 8)).astype(np.float32)
    scratch = jax.tree.map(lambda x: 1.5 * x, model().batch_stats)
    extra = {
      'generator': jnp.float32(shift),
      'mask': jnp.asarray(mask),
      'scratch': scratch,
      'target': jnp.int32(2),
    }
    with self.swapped(shift_net(shift)):
      phase = inversion.train_attacker(
        NET, hparams(), 'attack', is_targeted=is_targeted
      )
    state = phase.init(KEY, types.Carry(model=model(), extra=extra))
    _, metrics = phase.step(state, batch(), CLOCK)
    copy = dataclasses.replace(model(), batch_stats=scratch)
    x = np.asarray(batch()['image'])
    clean, moved = (
      jax.jit(lambda x: NET.features(copy, x))(v) for v in (x, x + shift)
    )
    gap = np.asarray(clean['penultimate_map'] - moved['penultimate_map'])
    distance = (shift / 0.25) ** 2  # in units of the deviation
    benign, backdoor = (np.mean((m * gap) ** 2) for m in (mask, 1 - mask))
    is_far = distance > 0.3 or benign > 3
    self.assertEqual(is_far, shift == 0.5)
    want = distance if is_far else 0.01 * benign - backdoor
    if is_targeted:
      labels = np.full(NUM, 2)
      want += training.cross_entropy(moved['logits'], labels)
    np.testing.assert_allclose(metrics['loss'], want, rtol=1e-4, atol=1e-6)

  def test_target_is_the_most_frequent_prediction(self):
    hp, seen = hparams(noise=0.0), batch()
    with self.swapped(shift_net(0.0)):
      phase = inversion.vote_target(NET, hp, 'target')
    extra = {'generator': jnp.float32(0.0)}
    state = phase.init(KEY, types.Carry(model=model(), extra=extra))
    logits, _ = NET.apply(model(), seen['image'])
    predicted = np.argmax(logits, -1)
    mask = predicted != np.bincount(predicted).argmax()  # the others count
    mask = mask if mask.any() else np.ones(NUM, bool)
    state, metrics = phase.step(
      state, seen | {'mask': jnp.asarray(mask)}, CLOCK
    )
    want = np.bincount(predicted[mask], minlength=4)
    np.testing.assert_array_equal(state.counts, want)
    self.assertEqual(int(phase.finish(state).extra['target']), want.argmax())
    np.testing.assert_allclose(
      metrics['moved'], np.mean(predicted != LABELS), rtol=1e-6
    )

  def test_noise_of_the_vote_is_in_normalized_units(self):
    recorded = []

    def apply(params, images):
      recorded.append(images)
      return images

    net = shift_net(0.0)._replace(apply=apply)
    with self.swapped(net):
      phase = inversion.vote_target(NET, hparams(noise=0.4), 'target')
    extra = {'generator': jnp.float32(0.0)}
    state = phase.init(KEY, types.Carry(model=model(), extra=extra))
    phase.step(state, batch(), CLOCK)
    noise = np.asarray(recorded[0] - batch()['image'])
    np.testing.assert_allclose(noise.std(), 0.4 * 0.25, rtol=0.1)
    self.assertFalse(np.array_equal(noise[0], noise[1]))

  def test_attackers_optimizer_goes_on(self):
    once, twice = inverted(1), inverted(2)
    count = lambda carry: carry.extra['optimizers']['generator'][0].count
    self.assertEqual((int(count(once)), int(count(twice))), (2, 4))

  def test_kept_optimizer_equals_one_long_phase(self):
    def phase(name, epochs):
      return training.fit(
        lambda key, carry: (carry.extra['w'], carry),
        lambda w, carry, b, clock: (jnp.sum((w - 3) ** 2), ({}, carry)),
        optax.with_extra_args_support(optax.adam(0.1)),
        finish=lambda w, carry: types.Carry(
          model=carry.model, extra={**carry.extra, 'w': w}
        ),
        name=name,
        num_epochs=epochs,
        batch_size=NUM,
        reads='clean',
      )

    kept = lambda *args: training.keep_optimizer(phase(*args), 'w')
    extra = {'w': jnp.arange(3.0)}
    long = run((kept('a', 6),), extra)[0].extra
    short = run((kept('a', 2), kept('b', 4)), extra)[0].extra
    fresh = run((phase('a', 2), phase('b', 4)), extra)[0].extra
    np.testing.assert_array_equal(short['w'], long['w'])
    self.assertFalse(np.allclose(fresh['w'], long['w'], rtol=1e-3))

  def test_a_network_without_the_map_is_unsupported(self):
    net = small_nets.linear_net()
    with self.assertRaisesRegex(checks.Unsupported, r"tap\('penultimate_map'"):
      training.pretrain_generator(net, hparams())

  @parameterized.parameters(
    (dict(batch_size=0), '`batch_size=0` must be positive'),
    (dict(pretrain_epochs=0), '`pretrain_epochs=0` must be positive'),
    (dict(mask_epochs=0), '`mask_epochs=0` must be positive'),
    (dict(attack_epochs=0), '`attack_epochs=0` must be positive'),
    (dict(generator_lr=-1.0), '`generator_lr=-1.0` must not be negative'),
    (dict(mask_lr=-1.0), '`mask_lr=-1.0` must not be negative'),
    (dict(image_bound=-1.0), '`image_bound=-1.0` must not be negative'),
    (dict(share=20.0), r'`share=20.0` is not in .* use 0.2 for 20 %'),
    (dict(levels=5), 'take fewer levels'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      training.pretrain_generator(NET, hparams(**values))

  def swapped(self, net):
    """A context in which the generator is `net`."""
    return mock.patch.object(inversion, 'generator', lambda classifier, hp: net)
