"""FP: its guarantees, activity and sweep by hand, messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import defenses, training, types
from bdjax.defenses.fp import by_activity, masked_head, prefixes, sweep_head
from tests.defenses import pruning

NET = pruning.NET
UNITS = 8
ACTIVITY = np.asarray([0.2, 0.5, -1.0, 3.0, 0.2, 0.7], np.float32)


def hparams(**values):
  base = dict(epochs=2, batch_size=4, lr=0.05, prune_step=0.25)
  return defenses.FpHParams(**base | values)


@functools.cache
def outcome(**values):
  defense = defenses.fp(NET, hparams(**values))
  program = jax.jit(lambda state: pruning.run(defense, state))
  return program(pruning.model())


def head_kernel(state):
  return np.asarray(state.params['head']['kernel'])


def activations(index):
  """Mean inputs of the head, of unaugmented images."""
  images = jnp.asarray(pruning.IMAGES[np.asarray(index)], jnp.float32) / 255
  return NET.features(pruning.model(), images)['penultimate'].mean(0)


class SweepTest(parameterized.TestCase):
  @parameterized.parameters(
    (8, 2, [0, 2, 4, 6]), (8, 3, [0, 3, 6]), (3, 1, [0, 1, 2]), (4, 9, [0])
  )
  def test_prefixes_prune_whole_steps_and_never_all(self, units, step, want):
    table = np.asarray(prefixes(units, step))
    np.testing.assert_array_equal(units - table.sum(1), want)

  def test_512_units_in_steps_of_one_percent_are_86_candidates(self):
    self.assertEqual(prefixes(512, 6).shape, (86, 512))

  def test_candidates_are_nested_and_the_first_is_untouched(self):
    masks = np.asarray(by_activity(jnp.asarray(ACTIVITY), prefixes(6, 2)))
    np.testing.assert_array_equal(masks[0], np.ones(6))
    for mild, harsh in zip(masks, masks[1:], strict=False):
      self.assertTrue(np.all(mild >= harsh))

  def test_least_active_are_pruned_first_and_ties_by_position(self):
    masks = np.asarray(by_activity(jnp.asarray(ACTIVITY), prefixes(6, 1)))
    order = [int(np.flatnonzero(a - b)[0]) for a, b in _steps(masks)]
    self.assertEqual(order, [2, 0, 4, 1, 5])

  @parameterized.parameters(True, False)
  def test_one_product_equals_a_naive_loop(self, with_bias):
    rng = np.random.default_rng(0)
    features, kernel = rng.normal(size=(5, 6)), rng.normal(size=(6, 3))
    head = {'kernel': jnp.asarray(kernel, jnp.float32)}
    bias = np.zeros(3)
    if with_bias:
      bias = rng.normal(size=3)
      head['bias'] = jnp.asarray(bias, jnp.float32)
    masks = np.asarray(by_activity(jnp.asarray(ACTIVITY), prefixes(6, 1)))
    got = sweep_head(jnp.asarray(features, jnp.float32), head, masks)
    for mask, logits in zip(masks, got, strict=True):
      want = (features * mask) @ kernel + bias
      np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)

  def test_the_sweep_is_that_of_whole_networks(self):
    carry, _ = outcome()
    _, val = training.split_feed(pruning.feed())
    rows = np.asarray(val.index)
    images = jnp.asarray(pruning.IMAGES[rows], jnp.float32) / 255
    masks = by_activity(carry.extra['activity'], prefixes(UNITS, 2))
    for mask, got in zip(masks, carry.extra['accuracy'], strict=True):
      model = masked_head(NET, pruning.model(), mask)
      guess = np.argmax(NET.apply(model, images)[0], -1)
      np.testing.assert_allclose(got, np.mean(guess == pruning.LABELS[rows]))


def _steps(masks):
  return zip(masks, masks[1:], strict=False)


class FpTest(parameterized.TestCase):
  def test_activity_is_the_mean_over_the_fitting_part_each_image_once(self):
    # Eight images in batches of three: the last batch holds one again.
    carry, _ = outcome(batch_size=3)
    fit, _ = training.split_feed(pruning.feed())
    self.assertEqual(fit.index.shape, (8,))
    np.testing.assert_allclose(
      carry.extra['activity'], activations(fit.index), rtol=1e-5, atol=1e-6
    )

  def test_pruned_rows_of_the_head_stay_exactly_zero(self):
    carry, _ = outcome(max_drop=1.0)
    mask = np.asarray(carry.extra['mask'])
    self.assertEqual(int(carry.extra['chosen']), 3)
    self.assertEqual(mask.sum(), 2)
    kernel = head_kernel(carry.model)
    np.testing.assert_array_equal(kernel[mask == 0], 0)
    self.assertTrue(np.all(kernel[mask == 1] != 0))
    before = head_kernel(pruning.model())
    self.assertTrue(np.all(kernel[mask == 1] != before[mask == 1]))

  def test_running_statistics_move_in_fine_tuning_only(self):
    select = defenses.fp(NET, hparams()).phases[:-1]
    carry, _ = pruning.run(
      defenses.fp(NET, hparams())._replace(phases=select), pruning.model()
    )
    before = pruning.model().batch_stats
    chex.assert_trees_all_equal(carry.model.batch_stats, before)
    after = outcome()[0].model.batch_stats
    self.assertFalse(
      np.array_equal(after['bn1']['mean'], before['bn1']['mean'])
    )

  def test_a_step_of_everything_leaves_one_candidate_too_few(self):
    with self.assertRaisesRegex(ValueError, 'nothing to select'):
      defenses.fp(NET, hparams(prune_step=1.0))

  def test_nothing_pruned_is_plain_fine_tuning(self):
    hp = dict(epochs=2, batch_size=4, lr=0.05)
    tune = training.run_phases(
      defenses.fp(NET, hparams()).phases[-1:],
      types.Carry(model=pruning.model(), extra={'mask': jnp.ones(UNITS)}),
      {'clean': pruning.feed()},
      pruning.KEY,
    )[0]
    plain, _ = pruning.run(
      defenses.ft(NET, defenses.FtHParams(**hp)), pruning.model()
    )
    chex.assert_trees_all_close(tune.model, plain.model, rtol=1e-6)

  def test_what_the_phases_read(self):
    reads = lambda **values: [
      (phase.name, phase.reads)
      for phase in defenses.fp(NET, hparams(**values)).phases
    ]
    want = [('activity', 'clean_fit'), ('select', 'clean_val')]
    self.assertEqual(reads(), [*want, ('tune', 'clean')])
    want = [('activity', 'clean'), ('select', 'test_clean')]
    self.assertEqual(reads(selector='oracle'), [*want, ('tune', 'clean')])

  def test_defaults_are_the_benchmarks(self):
    *_, tune = defenses.fp(NET).phases
    self.assertEqual((tune.num_epochs, tune.batch_size), (100, 256))
    hp = defenses.FpHParams()
    self.assertEqual((hp.prune_step, hp.max_drop), (0.01, 0.1))

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(batch_size=0), '`batch_size=0` must be positive'),
    (dict(prune_step=5.0), 'use 0.05 for 5 %'),
    (dict(max_drop=-0.1), r'`max_drop=-0.1` is not in \[0, 1\]'),
    (dict(selector='test'), "`selector='test'` is not allowed"),
    (dict(schedule='cyclic'), "Did you mean 'cyclic_iter'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.fp(NET, defenses.FpHParams(**values))
