"""ANP: its guarantees, noise and masks by hand, torch's numbers, messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, defenses, surgery, training, tree, types
from bdjax.defenses.anp import (
  noisy_model,
  objective,
  worst_noise,
)
from tests import small_nets
from tests.defenses import pruning
from tests.reference import golden

NET = pruning.NET


def hparams(**values):
  return defenses.AnpHParams(**dict(num_steps=3, batch_size=4) | values)


@jax.jit
def program(hp, model):
  return pruning.run(defenses.anp(NET, hp), model)


@functools.cache
def outcome(**values):
  """Carry and metrics of a few steps; the threshold is high enough to prune."""
  hp = hparams(**dict(lr=50.0, threshold=0.9) | values)
  return program(hp, pruning.model())


def ones():
  return surgery.full_masks(NET, pruning.model())


class AnpTest(pruning.ScoresMixin, parameterized.TestCase):
  def outcome(self):
    return outcome()[0]

  def test_some_masks_are_neither_zero_nor_one(self):
    scores = np.concatenate(list(outcome()[0].extra['scores'].values()))
    self.assertTrue(np.any((scores > 0) & (scores < 1)))

  @parameterized.parameters((True, 0.4), (False, 0.8))
  def test_noise_stays_in_the_box_unless_it_is_not_projected(
    self, project, largest
  ):
    noise = worst_noise(
      lambda noise: jnp.sum(noise['a']) - jnp.sum(noise['b']),
      {'a': jnp.full(3, 0.4), 'b': jnp.zeros(2)},
      eps=0.4,
      num_steps=4,
      project=project,
    )
    np.testing.assert_allclose(noise['a'], np.full(3, largest), rtol=1e-6)
    np.testing.assert_allclose(noise['b'], np.full(2, -0.4), rtol=1e-6)

  def test_ascent_follows_the_sign_of_the_gradient(self):
    # ½(x − 1)² grows away from 1; where x = 1 there is no gradient.
    start = {'x': jnp.asarray([0.9, 1.0, 1.1])}
    noise = worst_noise(
      lambda noise: 0.5 * jnp.sum((noise['x'] - 1) ** 2),
      start,
      eps=3.0,
      num_steps=6,
    )
    np.testing.assert_allclose(noise['x'], [-2.1, 1.0, 3.0], rtol=1e-6)

  def test_full_masks_without_noise_are_the_model_itself(self):
    zeros = jax.tree.map(jnp.zeros_like, ones())
    noise = {'scale': zeros, 'bias': zeros}
    same = noisy_model(NET, pruning.model(), ones(), noise)
    chex.assert_trees_all_equal(same, pruning.model())

  def test_noise_multiplies_scales_by_m_plus_delta_and_biases_by_1_plus_xi(
    self,
  ):
    model = pruning.model()
    masks = jax.tree.map(lambda m: 0.5 * m, ones())
    noise = {
      'scale': jax.tree.map(lambda m: 0.25 * m, ones()),
      'bias': jax.tree.map(lambda m: -0.5 * m, ones()),
    }
    got = noisy_model(NET, model, masks, noise)
    for leaf, factor in (('scale', 0.75), ('bias', 0.5)):
      before = pruning.norm_leaf(model, leaf)
      after = pruning.norm_leaf(got, leaf)
      for name in before:
        np.testing.assert_allclose(
          after[name], factor * before[name], rtol=1e-6
        )

  def test_without_noise_both_losses_agree_and_alpha_is_immaterial(self):
    (one, metrics), (other, _) = (
      outcome(eps=0.0, alpha=alpha, lr=0.2) for alpha in (0.0, 0.7)
    )
    of = metrics['mask']
    np.testing.assert_allclose(of['loss_noisy'], of['loss_clean'], rtol=1e-6)
    chex.assert_trees_all_close(
      one.extra['scores'], other.extra['scores'], rtol=1e-5, atol=1e-6
    )

  def test_alpha_one_is_blind_to_noise(self):
    one, other = (outcome(eps=e, alpha=1.0, lr=0.2)[0] for e in (0.1, 0.9))
    chex.assert_trees_all_equal(one.extra['scores'], other.extra['scores'])

  def test_threshold_below_zero_is_the_identity(self):
    carry, _ = outcome(threshold=-1.0)
    chex.assert_trees_all_equal(carry.model, pruning.model())
    self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 0)

  def test_sweep_equals_pruning_at_each_threshold(self):
    thresholds = (0.0, 0.5, 0.9, 0.999)
    hp = hparams(lr=50.0, thresholds=thresholds, max_drop=1.0)
    carry, _ = program(hp, pruning.model())
    # All is tolerated: the last one is taken, what it prunes is in the scores.
    self.assertEqual(int(carry.extra['chosen']), len(thresholds))
    want = surgery.apply_channel_mask(
      NET,
      pruning.model(),
      surgery.keep_above(carry.extra['scores'], thresholds[-1]),
    )
    chex.assert_trees_all_equal(carry.model, want)
    held_out = self.held_out()
    masks = [ones()]
    for t in thresholds:
      masks.append(surgery.keep_above(carry.extra['scores'], t))
    for got, mask in zip(carry.extra['accuracy'], masks, strict=True):
      model = surgery.apply_channel_mask(NET, pruning.model(), mask)
      images = jnp.asarray(held_out['images'], jnp.float32) / 255
      guess = np.argmax(NET.apply(model, images)[0], -1)
      np.testing.assert_allclose(got, np.mean(guess == held_out['labels']))

  def held_out(self):
    _, val = training.split_feed(pruning.feed())
    rows = np.asarray(val.index)
    return {'images': pruning.IMAGES[rows], 'labels': pruning.LABELS[rows]}

  def test_what_the_phases_read(self):
    reads = lambda **values: [
      (phase.name, phase.reads)
      for phase in defenses.anp(NET, hparams(**values)).phases
    ]
    val = [('mask', 'clean_fit'), ('select', 'clean_val')]
    self.assertEqual(reads(), val)
    fixed = [('mask', 'clean'), ('prune', 'none')]
    self.assertEqual(reads(threshold=0.2), fixed)
    oracle = [('mask', 'clean'), ('select_clean', 'test_clean')]
    oracle.append(('select', 'test_triggered'))
    self.assertEqual(reads(selector='oracle'), oracle)

  def test_defaults_are_the_papers(self):
    hp = defenses.AnpHParams()
    phase = defenses.anp(NET).phases[0]
    self.assertEqual((phase.num_steps, phase.batch_size), (2000, 256))
    self.assertEqual((hp.eps, hp.alpha, hp.lr), (0.4, 0.2, 0.2))
    self.assertLen(hp.thresholds, 19)
    self.assertEqual((hp.thresholds[0], hp.thresholds[-1]), (0.0, 0.9))

  @parameterized.parameters(
    (dict(num_steps=0), '`num_steps=0` must be positive'),
    (dict(anp_steps=0), '`anp_steps=0` must be positive'),
    (dict(eps=-0.4), '`eps=-0.4` must not be negative'),
    (dict(lr=-0.2), '`lr=-0.2` must not be negative'),
    (dict(alpha=2.0), r'`alpha=2.0` is not in \[0, 1\]'),
    (dict(max_drop=10.0), r'`max_drop=10.0` is not in \[0, 1\]'),
    (dict(selector='oracel'), "Did you mean 'oracle'"),
    (dict(selector='oracel', threshold=0.2), "Did you mean 'oracle'"),
    (dict(thresholds=()), 'at least one'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.anp(NET, defenses.AnpHParams(**values))

  def test_a_network_without_norms_is_refused(self):
    with self.assertRaisesRegex(checks.Unsupported, 'no BatchNorm layer'):
      defenses.anp(small_nets.linear_net())


def masks_of(prefix: str, leaf: str):
  """One leaf of every norm, by this library's name of the norm."""
  found = {}
  for name, value in golden.arrays('anp', f'{prefix}/layer').items():
    if name.endswith(f'.{leaf}'):
      stage, block, norm, _ = name.split('.')
      found[f'stage{stage}_{block}.{norm}'] = jnp.asarray(value, jnp.float64)
  assert len(found) == 16
  return found


def noise_of(prefix: str):
  return {
    'scale': masks_of(prefix, 'neuron_noise'),
    'bias': masks_of(prefix, 'neuron_noise_bias'),
  }


class AnpGoldenTest(parameterized.TestCase):
  """One step on a real network in float64, against the official code's."""

  def close(self, got, want):
    golden.assert_close(got, want, 1e-10)

  def test_gradients_losses_and_masks(self):
    arrays = golden.arrays('anp')
    with jax.enable_x64(True):
      carry = types.Carry(model=golden.state(dtype=jnp.float64), extra={})
      batch = {
        'image': golden.images('anp'),
        'label': jnp.asarray(arrays['labels'], jnp.int32),
      }
      fun = objective(golden.network(), 0.2)

      def loss_fn(masks, noise):
        loss, (metrics, _) = fun(masks, carry, {**batch, 'noise': noise}, None)
        return loss, metrics

      program = golden.jit(jax.value_and_grad(loss_fn, (0, 1), has_aux=True))
      masks, start = (
        masks_of('mask_init', 'neuron_mask'),
        noise_of('noise_init'),
      )
      _, (_, gradient) = program(masks, start)
      gradient = jax.tree.map(lambda g: g / 0.8, gradient)
      self.close(gradient, noise_of('noise_grad'))
      linear = lambda noise: tree.dot(noise, gradient)
      for project, name, prefix in (
        (True, 'noise_projected', 'projected_'),
        (False, 'noise_after', ''),
      ):
        noise = worst_noise(
          linear, start, eps=0.4, num_steps=1, project=project
        )
        self.close(noise, noise_of(name))
        (loss, metrics), (grads, _) = program(masks, noise)
        self.close(loss, arrays[f'{prefix}loss'])
        self.close(metrics['loss_noisy'], arrays[f'{prefix}loss_rob'])
        self.close(metrics['loss_clean'], arrays[f'{prefix}loss_nat'])
        self.close(grads, masks_of(f'{prefix}mask_grad', 'neuron_mask'))
      after = jax.tree.map(
        lambda m, g: jnp.clip(m - 0.2 * g, 0, 1), masks, grads
      )
      self.close(after, masks_of('mask_after', 'neuron_mask'))
