"""BTI-DBF: its phases, the unlearning step by hand, what it leaves behind."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, defenses, training, types
from tests import small_nets
from tests.defenses import inverting, tuning

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
CLOCK, batch, model = inverting.CLOCK, inverting.batch, inverting.model


def hparams(**values):
  return defenses.BtiDbfHParams(**inverting.ROUNDS | values)


@functools.cache
def run(num_phases=8):
  """The carry after so many phases."""
  if num_phases == 0:
    return types.Carry(model=model(), extra={})
  defense = defenses.bti_dbf(NET, hparams())
  last = defense._replace(phases=defense.phases[num_phases - 1 : num_phases])
  one = lambda carry: tuning.run(last, carry.model, carry.extra)[0]
  return jax.jit(one)(run(num_phases - 1))


def unlearning(change, **values):
  """The first unlearning phase, before and after a step, and its metrics.

  Args:
    change: what stands in for the generator.
    **values: hyper-parameters.
  """
  hp = hparams(**values)
  phase = inverting.phases(defenses.bti_dbf, NET, hp, change)[4]
  extra = {'generator': {}, 'mask': jnp.zeros(1), 'target': jnp.int32(0)}
  before = phase.init(KEY, types.Carry(model=model(), extra=extra))
  return phase, before, *phase.step(before, batch(), CLOCK)


class BtiDbfTest(parameterized.TestCase):
  def test_phases(self):
    made = defenses.bti_dbf(NET, hparams()).phases
    want = ['pretrain', 'mask1', 'attack1', 'target1', 'unlearn1']
    want += ['mask2', 'attack2', 'unlearn2']
    self.assertEqual([phase.name for phase in made], want)
    for phase in made:
      self.assertEqual((phase.reads, phase.batch_size), ('clean', NUM))
      self.assertTrue(phase.augment)
      self.assertFalse(phase.drop_last)

  def test_defaults_are_the_papers(self):
    phases = defenses.bti_dbf(small_nets.conv_net(size=32)).phases
    self.assertLen(phases, 2 + 3 * 5)
    lengths = {phase.name: phase.num_epochs for phase in phases[:5]}
    want = dict(pretrain=50, mask1=20, attack1=30, target1=1, unlearn1=30)
    self.assertEqual(lengths, want)

  def test_only_unlearning_changes_the_model(self):
    chex.assert_trees_all_equal(run(4).model, model())
    chex.assert_trees_all_equal(run(7).model, run(5).model)
    for old, new in ((4, 5), (7, 8)):
      pairs = zip(
        *(jax.tree.leaves(run(i).model) for i in (old, new)), strict=True
      )
      self.assertFalse(any(np.array_equal(a, b) for a, b in pairs))

  def test_scratch_statistics_are_thrown_away(self):
    extra = run(4).extra
    scratch, own = extra['scratch']['bn0'], model().batch_stats['bn0']
    self.assertFalse(np.allclose(scratch['mean'], own['mean'], rtol=1e-3))
    final = run().extra
    self.assertEqual(set(final), {'generator', 'mask', 'target'})

  def test_target_is_voted_once_and_stays(self):
    first, last = run(4).extra['target'], run().extra['target']
    self.assertEqual(int(first), int(last))
    self.assertIn(int(first), range(4))

  def test_loss_by_hand(self):
    _, _, _, metrics = unlearning(lambda x: 1 - x, share=0.2)
    images = np.asarray(batch()['image'])
    clean = NET.features(model(), batch()['image'], train=True)
    losses = []
    for i in range(NUM):
      for j in range(i):  # ⌊0.2·6⌋ + 1 = 2 of 6 are replaced
        mixed = images.copy()
        mixed[[i, j]] = 1 - mixed[[i, j]]
        seen = NET.features(model(), jnp.asarray(mixed), train=True)
        gap = clean['penultimate_map'] - seen['penultimate_map']
        # Labels stay true.
        loss = training.cross_entropy(seen['logits'], batch()['label'])
        losses.append(float(loss + jnp.mean(gap**2)))
    gaps = np.abs(np.asarray(losses) - float(metrics['loss']))
    self.assertLess(gaps.min(), 1e-4)
    self.assertGreater(np.sort(gaps)[1], 1e-4)

  def test_an_identity_is_plain_tuning_by_adam(self):
    _, before, after, metrics = unlearning(lambda x: x, lr=0.01)
    self.assertEqual(float(metrics['feature_mse']), 0.0)

    def loss(params):
      state = types.ModelState(params=params, batch_stats=model().batch_stats)
      logits, new = NET.apply(state, batch()['image'], train=True)
      return training.cross_entropy(logits, batch()['label']), new

    grads, new = jax.grad(loss, has_aux=True)(model().params)
    # Adam's first step: the rate times g/(|g| + 1e-8).
    want = jax.tree.map(
      lambda w, g: w - 0.01 * g / (np.abs(g) + 1e-8), before.trained, grads
    )
    large = jax.tree.map(lambda g: np.abs(g) > 1e-5, grads)
    for got, expected, m in zip(
      *map(jax.tree.leaves, (after.trained, want, large)), strict=True
    ):
      np.testing.assert_allclose(
        np.asarray(got)[m], np.asarray(expected)[m], rtol=1e-3, atol=1e-5
      )
    # Train-BN: statistics moved once, by the batch.
    chex.assert_trees_all_close(after.rest[0], new.batch_stats, rtol=1e-5)

  def test_statistics_move_once_per_step_and_by_the_mixed_batch(self):
    _, _, after, _ = unlearning(lambda x: 1 - x, share=1.0)
    mixed = 1 - batch()['image']  # ⌊1·6⌋ + 1, but no more than there are
    want = NET.apply(model(), mixed, train=True)[1].batch_stats
    chex.assert_trees_all_close(after.rest[0], want, rtol=1e-4, atol=1e-6)

  def test_optimizer_goes_on_in_the_next_round(self):
    counts = run(5).extra['optimizers']
    self.assertEqual(int(counts['model'][0].count), 2)

  def test_a_network_without_the_map_is_unsupported(self):
    with self.assertRaisesRegex(checks.Unsupported, "no tap 'penultimate_map'"):
      defenses.bti_dbf(small_nets.linear_net())

  @parameterized.parameters(
    (dict(rounds=0), '`rounds=0` must be positive'),
    (dict(unlearn_epochs=0), '`unlearn_epochs=0` must be positive'),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(share=0.0), r'`share=0.0` is not in \(0, 1\]'),
    (dict(levels=4), '`levels=4` cannot halve 8×8'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.bti_dbf(NET, hparams(**values))
