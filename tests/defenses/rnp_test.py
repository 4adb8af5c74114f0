"""RNP: its guarantees, its stop by script, its ascent by hand, messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, defenses, surgery, training, types
from bdjax.defenses.rnp import halt_at
from tests import small_nets
from tests.defenses import pruning

NET = pruning.NET


def hparams(**values):
  base = dict(unlearn_epochs=2, recover_epochs=2, batch_size=4, threshold=0.9)
  return defenses.RnpHParams(**base | values)


@functools.cache
def program(num_phases):
  def run(hp, state):
    defense = defenses.rnp(NET, hp)
    defense = defense._replace(phases=defense.phases[:num_phases])
    return pruning.run(defense, state)

  return jax.jit(run)


@functools.cache
def outcome(**values):
  hp = hparams(**dict(recover_lr=50.0, unlearn_lr=0.5) | values)
  return program(3)(hp, pruning.model())


@functools.cache
def unlearned(**values):
  """The copy after the ascent, and the ascent's metrics."""
  carry, metrics = program(1)(hparams(**values), pruning.model())
  chex.assert_trees_all_equal(carry.model, pruning.model())
  return carry.extra['unlearned'], metrics['unlearn']


class RnpTest(pruning.ScoresMixin, parameterized.TestCase):
  def outcome(self):
    return outcome()[0]

  def test_the_unlearned_copy_is_not_left_behind(self):
    self.assertNotIn('unlearned', outcome()[0].extra)

  def test_unlearning_ascends_and_moves_its_own_statistics(self):
    copy, metrics = unlearned(stop_accuracy=0.0, unlearn_lr=0.5)
    losses = -np.asarray(metrics['loss'])
    self.assertGreater(losses[-1], losses[0] + 0.5)
    before = pruning.model().batch_stats['bn1']['mean']
    self.assertFalse(np.array_equal(copy.batch_stats['bn1']['mean'], before))

  def test_first_step_is_the_clipped_ascent(self):
    # One batch per epoch, one epoch, without momentum's past and decay.
    hp = hparams(
      batch_size=10,
      unlearn_epochs=1,
      unlearn_lr=0.1,
      weight_decay=0.0,
      clip_norm=0.01,
    )
    carry, _ = jax.jit(
      lambda state: pruning.run(
        types.Defense(phases=defenses.rnp(NET, hp).phases[:1]), state
      )
    )(pruning.model())
    state = pruning.model()
    images = jnp.asarray(pruning.IMAGES, jnp.float32) / 255

    @jax.jit
    @jax.grad
    def gradient(params):
      model = types.ModelState(params=params, batch_stats=state.batch_stats)
      logits, _ = NET.apply(model, images, train=True)
      return training.cross_entropy(logits, jnp.asarray(pruning.LABELS))

    grads = gradient(state.params)
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    self.assertGreater(norm, 0.01)
    want = jax.tree.map(
      lambda w, g: w + 0.1 * 0.01 / norm * g, state.params, grads
    )
    chex.assert_trees_all_close(
      carry.extra['unlearned'].params, want, rtol=1e-5, atol=1e-6
    )

  def test_a_stop_at_once_leaves_the_first_epoch_only(self):
    copy, metrics = unlearned(stop_accuracy=1.0)
    # Ten images in batches of four: three steps per epoch.
    want = [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(metrics['is_done'], want)
    full, metrics = unlearned(stop_accuracy=0.0, unlearn_lr=0.0)
    np.testing.assert_array_equal(metrics['is_done'], np.zeros(6))
    mean = lambda state: np.asarray(state.batch_stats['bn1']['mean'])
    self.assertFalse(np.array_equal(mean(copy), mean(full)))

  def test_masks_of_an_undamaged_model_stay_near_one(self):
    damaged, intact = (
      program(2)(
        hparams(unlearn_lr=lr, recover_lr=0.2, stop_accuracy=0.0),
        pruning.model(),
      )[0].extra['scores']
      for lr in (0.5, 0.0)
    )
    low = lambda scores: np.concatenate(list(scores.values())).min()
    self.assertGreater(low(intact), 0.9)
    self.assertLess(low(damaged), low(intact))

  def test_alpha_zero_leaves_all_masks_at_one(self):
    carry, _ = outcome(alpha=0.0)
    chex.assert_trees_all_equal(
      carry.extra['scores'], surgery.full_masks(NET, pruning.model())
    )

  def test_threshold_below_zero_is_the_identity(self):
    chex.assert_trees_all_equal(
      outcome(threshold=-1.0)[0].model, pruning.model()
    )

  def test_what_the_phases_read(self):
    reads = lambda **values: [
      (phase.name, phase.reads)
      for phase in defenses.rnp(NET, hparams(**values)).phases
    ]
    val = [('unlearn', 'clean_fit'), ('recover', 'clean_fit')]
    self.assertEqual(reads(threshold=None), [*val, ('select', 'clean_val')])
    fixed = [('unlearn', 'clean'), ('recover', 'clean')]
    self.assertEqual(reads(), [*fixed, ('prune', 'none')])
    oracle = [('select_clean', 'test_clean'), ('select', 'test_triggered')]
    got = reads(threshold=None, selector='oracle')
    self.assertEqual(got, [*fixed, *oracle])

  def test_defaults_are_the_benchmarks(self):
    hp = defenses.RnpHParams()
    phases = defenses.rnp(NET).phases
    self.assertEqual([p.num_epochs for p in phases], [20, 20, 1])
    self.assertEqual((hp.unlearn_lr, hp.recover_lr), (0.01, 0.2))
    self.assertEqual((hp.alpha, hp.stop_accuracy), (0.2, 0.2))
    self.assertLen(hp.thresholds, 19)

  @parameterized.parameters(
    (dict(unlearn_epochs=0), '`unlearn_epochs=0` must be positive'),
    (dict(recover_epochs=0), '`recover_epochs=0` must be positive'),
    (dict(clip_norm=0.0), '`clip_norm=0.0` must be positive'),
    (dict(alpha=-0.2), '`alpha=-0.2` must not be negative'),
    (dict(stop_accuracy=20.0), r'`stop_accuracy=20.0` is not in \[0, 1\]'),
    (dict(selector='oracel'), "Did you mean 'oracle'"),
    (dict(thresholds=()), 'at least one'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.rnp(NET, defenses.RnpHParams(**values))

  def test_a_network_without_norms_is_refused(self):
    with self.assertRaisesRegex(checks.Unsupported, 'no BatchNorm layer'):
      defenses.rnp(small_nets.linear_net())


class HaltTest(parameterized.TestCase):
  """A phase that counts its steps, with accuracies from a script."""

  def steps(self, accuracies, *, stop, masks=None):
    """Steps done after each of the given ones; two steps per epoch."""
    script = jnp.asarray(accuracies, jnp.float32)
    phase = types.Phase(
      name='p',
      init=lambda key, carry: jnp.int32(0),
      step=lambda s, batch, clock: (s + 1, {'accuracy': script[clock.step]}),
      finish=lambda s: s,
    )
    phase = halt_at(phase, stop)
    state, seen = phase.init(pruning.KEY, None), []
    for i in range(len(accuracies)):
      clock = types.Clock(
        pruning.KEY, jnp.int32(i), jnp.int32(i // 2), len(accuracies), 3
      )
      mask = jnp.ones(4, bool) if masks is None else jnp.asarray(masks[i])
      state, _ = phase.step(state, {'mask': mask}, clock)
      seen.append(int(phase.finish(state)))
    return seen

  def test_stops_after_the_first_epoch_of_low_accuracy(self):
    seen = self.steps([1.0, 0.9, 0.1, 0.3, 1.0, 1.0], stop=0.2)
    self.assertEqual(seen, [1, 2, 3, 4, 4, 4])

  def test_one_low_batch_is_not_a_low_epoch(self):
    seen = self.steps([0.0, 0.9, 0.5, 0.0, 0.9, 0.0], stop=0.2)
    self.assertEqual(seen, [1, 2, 3, 4, 5, 6])

  def test_stays_stopped(self):
    seen = self.steps([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], stop=0.2)
    self.assertEqual(seen, [1, 2, 2, 2, 2, 2])

  def test_examples_that_come_again_do_not_count(self):
    # (4 · 0.0 + 1 · 1.0) / 5 = 0.2; with three wrapped around it were 0.5.
    masks = [[True] * 4, [True, False, False, False]] * 2
    seen = self.steps([0.0, 1.0, 1.0, 1.0], stop=0.2, masks=masks)
    self.assertEqual(seen, [1, 2, 2, 2])
