"""EP: its guarantees, entropies by hand, messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, defenses, surgery
from bdjax.defenses.ep import entropies
from tests import small_nets
from tests.defenses import pruning

NET = pruning.NET


@functools.cache
def program():
  feeds = {'train': pruning.feed()}
  return jax.jit(
    lambda hp, state: pruning.run(defenses.ep(NET, hp), state, feeds)[0]
  )


def pruned(u):
  return program()(defenses.EpHParams(u=u), pruning.model())


def entropies_twin(values, width):
  """Histograms channel by channel, bins from the layer's minimum."""
  values = np.asarray(values, np.float64)
  z = (values - values.mean(0)) / values.std(0, ddof=1)
  num = int((z.max() - z.min()) / width) + 1
  edges = z.min() + width * np.arange(num + 1)
  found = []
  for column in z.T:
    p = np.histogram(column, edges)[0] / len(column)
    found.append(-sum(q * np.log(q) for q in p if q > 0))
  return np.asarray(found)


class EntropiesTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.37, 1.0)
  def test_equals_histograms(self, width):
    values = np.random.default_rng(0).normal(size=(64, 5)) ** 3
    got = entropies(jnp.asarray(values, jnp.float32), width)
    np.testing.assert_allclose(got, entropies_twin(values, width), rtol=1e-4)

  def test_lie_between_0_and_log_of_the_batch(self):
    values = jnp.asarray(np.random.default_rng(1).normal(size=(16, 3)))
    fine, coarse = entropies(values, 1e-4), entropies(values, 1e4)
    np.testing.assert_allclose(fine, np.full(3, np.log(16)), rtol=1e-5)
    np.testing.assert_array_equal(coarse, np.zeros(3))

  def test_scale_and_shift_of_a_channel_are_immaterial(self):
    values = np.random.default_rng(2).normal(size=(32, 1))
    values = np.concatenate([values, 1024 * values + 512], 1)
    one, other = entropies(jnp.asarray(values, jnp.float32), 0.1)
    np.testing.assert_allclose(one, other, rtol=0.05)

  def test_a_bimodal_channel_has_less_entropy_than_a_gaussian(self):
    rng = np.random.default_rng(3)
    values = rng.normal(size=(256, 8))
    values[:26, 5] += 50  # one in ten is triggered
    found = np.asarray(entropies(jnp.asarray(values), 0.1))
    self.assertEqual(int(np.argmin(found)), 5)
    keep = surgery.keep_inliers({'n': jnp.asarray(found)}, 2.0, side='below')
    np.testing.assert_array_equal(np.flatnonzero(keep['n'] == 0), [5])

  def test_a_constant_channel_has_none(self):
    values = np.random.default_rng(4).normal(size=(16, 2))
    values[:, 1] = 0.5
    found = entropies(jnp.asarray(values), 0.1)
    self.assertEqual(float(found[1]), 0)
    self.assertGreater(float(found[0]), 1)


class EpTest(pruning.GuaranteesMixin, parameterized.TestCase):
  def outcome(self):
    return pruned(0.5)

  def test_scores_are_entropies_of_spatial_maxima(self):
    state, scores = pruning.model(), pruned(0.5).extra['scores']
    images = jnp.asarray(pruning.IMAGES, jnp.float32) / 255
    inputs = surgery.norm_inputs(NET, state, images)
    for name, x in inputs.items():
      want = entropies_twin(np.asarray(x).max((1, 2)), 0.1)
      np.testing.assert_allclose(scores[name], want, rtol=1e-4)

  def test_channels_of_low_entropy_are_pruned(self):
    carry = pruned(0.5)
    for name, score in carry.extra['scores'].items():
      score = np.asarray(score)
      want = score >= score.mean() - 0.5 * score.std(ddof=1)
      np.testing.assert_array_equal(carry.extra['masks'][name], want)

  def test_large_u_is_the_identity(self):
    chex.assert_trees_all_equal(pruned(10.0).model, pruning.model())

  def test_reads_one_batch_of_the_training_set(self):
    score, prune = defenses.ep(NET).phases
    self.assertEqual((score.reads, score.num_steps), ('train', 1))
    self.assertEqual((score.batch_size, score.augment), (256, True))
    self.assertEqual((prune.reads, prune.num_steps), ('none', 0))
    info = defenses.REGISTRY['ep'].info
    self.assertEqual(info.needs, ('poisoned_train_set',))

  @parameterized.parameters(
    (dict(u=-1.0), '`u=-1.0` must not be negative'),
    (dict(bin_width=0.0), '`bin_width=0.0` must be positive'),
    (dict(batch_size=0), '`batch_size=0` must be positive'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.ep(NET, defenses.EpHParams(**values))

  @parameterized.parameters(small_nets.linear_net, small_nets.conv_net)
  def test_a_network_without_norms_or_taps_is_refused(self, make):
    with self.assertRaisesRegex(checks.Unsupported, 'its `tap`'):
      defenses.ep(make())
