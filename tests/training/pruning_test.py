"""Phases of pruning: scores, given thresholds, sweeps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import surgery, training, types
from tests.defenses import pruning

NET = pruning.NET


def run(phases, extra=None, feeds=None):
  carry = types.Carry(model=pruning.model(), extra=extra or {})
  feeds = {'clean': pruning.feed()} if feeds is None else feeds
  return training.run_phases(phases, carry, feeds, pruning.KEY)


def scores():
  """0, 1, 2, … of its norm for each channel."""
  ones = surgery.full_masks(NET, pruning.model())
  return jax.tree.map(lambda m: jnp.arange(len(m), dtype=m.dtype), ones)


class ScoreTest(parameterized.TestCase):
  def test_scores_come_from_one_batch_and_the_model_stays(self):
    ones = surgery.full_masks(NET, pruning.model())

    def scores_of(model, images):
      chex.assert_trees_all_equal_shapes(model, pruning.model())
      return jax.tree.map(lambda m: m * len(images), ones)

    phase = training.score(NET, scores_of, reads='clean', batch_size=4)
    carry, metrics = run((phase,))
    chex.assert_trees_all_equal(carry.model, pruning.model())
    np.testing.assert_array_equal(carry.extra['scores']['bn1'], np.full(4, 4))
    np.testing.assert_allclose(metrics['score']['mean_score'], [4.0])


class FitMasksTest(parameterized.TestCase):
  def fitted(self, num_steps, **fields):
    """Masks after descending the slopes −1, 0, 1, 2 of bn1's channels."""

    def objective(masks, carry, batch, clock):
      del batch, clock
      slopes = jnp.arange(4.0) - 1
      loss = jnp.sum(slopes * masks['bn1']) + 0 * jnp.sum(masks['bn2'])
      return loss, ({}, carry)

    phase = training.fit_masks(
      NET,
      objective,
      lr=0.125,
      momentum=0.5,
      name='mask',
      num_steps=num_steps,
      batch_size=4,
      reads='clean',
      **fields,
    )
    return run((phase,), {'mine': scores()})[0]

  @parameterized.parameters(
    # Heavy ball: 0.125·(1 + 1.5 + 1.75) of a slope after three steps.
    (1, (1, 1, 0.875, 0.75)),
    (3, (1, 1, 0.46875, 0)),
    (9, (1, 1, 0, 0)),
  )
  def test_descends_from_one_within_the_unit_interval(self, num_steps, want):
    carry = self.fitted(num_steps)
    np.testing.assert_allclose(carry.extra['scores']['bn1'], want, rtol=1e-6)
    np.testing.assert_array_equal(carry.extra['scores']['bn2'], np.ones(8))

  def test_the_model_and_other_extras_stay(self):
    carry = self.fitted(2)
    chex.assert_trees_all_equal(carry.model, pruning.model())
    self.assertEqual(set(carry.extra), {'mine', 'scores'})

  def test_fields_of_the_phase_can_be_given(self):
    finish = lambda masks, carry: types.Carry(model=carry.model, extra={})
    self.assertEqual(self.fitted(1, finish=finish).extra, {})


class PruneTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_masks_reach_scales_and_biases_only_if_asked(self, zero_bias):
    phase = training.prune(
      NET,
      lambda carry: carry.extra['mine'],
      lambda scores: surgery.keep_above(scores, 1.0),
      zero_bias=zero_bias,
    )
    carry, metrics = run((phase,), {'mine': scores()}, {})
    self.assertEqual(metrics, {})
    self.assertEqual(set(carry.extra), {'mine', 'scores', 'masks'})
    mask = np.asarray([0, 0, 1, 1])
    np.testing.assert_array_equal(carry.extra['masks']['bn1'], mask)
    for leaf, factor in (('scale', mask), ('bias', mask if zero_bias else 1)):
      old = pruning.norm_leaf(pruning.model(), leaf)['bn1']
      new = pruning.norm_leaf(carry.model, leaf)['bn1']
      np.testing.assert_array_equal(new, old * factor)


class PruneSweepTest(parameterized.TestCase):
  def phases(self, thresholds=(0.0, 1.0, 9.0), **rule):
    return training.prune_by_threshold(NET, None, thresholds, **rule)

  def test_untouched_comes_first_and_the_taken_one_is_applied(self):
    carry, _ = run(self.phases(max_drop=1.0), {'scores': scores()})
    self.assertEqual(carry.extra['accuracy'].shape, (4,))
    self.assertEqual(int(carry.extra['chosen']), 3)
    self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 12)
    scale = pruning.norm_leaf(carry.model, 'scale')['bn2']
    np.testing.assert_array_equal(scale, np.zeros(8))

  def test_where_nothing_may_be_lost_the_model_stays(self):
    # The head's bias is set so that the pruned model, whose logits are the
    # same for all images, errs on all images that the model gets right.
    images = jnp.asarray(pruning.IMAGES, jnp.float32) / 255
    state = pruning.model()
    none = jax.tree.map(jnp.zeros_like, scores())
    logits = lambda model: NET.apply(model, images)[0]
    blind = lambda model: surgery.apply_channel_mask(NET, model, none)
    middle = (logits(state).mean(0) + logits(blind(state)).mean(0)) / 2
    head = state.params['head']
    head = {**head, 'bias': head['bias'] - middle}
    params = {**state.params, 'head': head}
    state = types.ModelState(params=params, batch_stats=state.batch_stats)
    labels = np.argmax(logits(state), -1)
    wrong = np.flatnonzero(np.argmax(logits(blind(state)), -1) != labels)
    self.assertNotEmpty(wrong)
    carry, _ = training.run_phases(
      self.phases((9.0,), max_drop=0.0),
      types.Carry(model=state, extra={'scores': scores()}),
      {'clean_val': training.make_feed(pruning.IMAGES, labels, wrong)},
      pruning.KEY,
    )
    self.assertEqual(int(carry.extra['chosen']), 0)
    np.testing.assert_array_equal(carry.extra['accuracy'], [1, 0])
    chex.assert_trees_all_equal(carry.model, state)
    self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 0)

  def test_a_given_threshold_selects_nothing(self):
    (phase,) = training.prune_by_threshold(NET, 1.0, (0.0,))
    self.assertEqual((phase.name, phase.reads), ('prune', 'none'))
    carry, _ = run((phase,), {'scores': scores()}, {})
    self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 4)

  def test_no_thresholds_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'give at least one'):
      self.phases(())
