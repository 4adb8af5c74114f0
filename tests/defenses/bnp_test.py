"""BNP: its guarantees, divergences by hand, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, data, defenses, models, surgery, types
from bdjax.defenses.bnp import divergences, gaussian_kl
from tests import small_nets
from tests.defenses import pruning

NET = pruning.NET
WIDE = models.make('tiny', data.spec('synthetic'), width=16)


def images():
  return jnp.asarray(pruning.IMAGES, jnp.float32) / 255


@functools.cache
def program(net):
  return jax.jit(
    lambda u, state: pruning.run(
      defenses.bnp(net, defenses.BnpHParams(u=u)), state
    )[0]
  )


def pruned(u, state=None, net=NET):
  return program(net)(u, pruning.model() if state is None else state)


def fitted(net):
  """A model whose running statistics are those of the ten images."""
  state = net.init(jax.random.key(0))
  for _ in range(2):  # the second norm sees what the first one makes
    stats = {}
    for name, x in surgery.norm_inputs(net, state, images()).items():
      x = x.reshape(-1, x.shape[-1])
      stats[name] = {'mean': x.mean(0), 'var': x.var(0, ddof=1)}
    state = types.ModelState(params=state.params, batch_stats=stats)
  return state


def with_mean(state, name, channel, shift):
  layer = state.batch_stats[name]
  moved = {**layer, 'mean': layer['mean'].at[channel].add(shift)}
  stats = {**state.batch_stats, name: moved}
  return types.ModelState(params=state.params, batch_stats=stats)


class GaussianKlTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.0, 1.0, 0.0, 1.0, 0.0),
    (2.0, 1.0, 0.0, 1.0, 2.0),
    (0.0, 1.0, 0.0, 4.0, 0.5 * (np.log(4) + 1 / 4 - 1)),
    (1.0, 4.0, 3.0, 2.0, 0.5 * (np.log(0.5) + 8 / 2 - 1)),
  )
  def test_closed_form(self, mean, var, other_mean, other_var, want):
    values = (jnp.asarray([x]) for x in (mean, var, other_mean, other_var))
    np.testing.assert_allclose(gaussian_kl(*values), [want], atol=1e-4)

  def test_is_an_integral(self):
    x = np.linspace(-30, 30, 200_001)
    density = lambda m, v: (
      np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)
    )
    p, q = density(1.0, 2.0), density(-0.5, 3.0)
    want = np.sum(p * np.log(p / q)) * (x[1] - x[0])
    got = gaussian_kl(*(jnp.asarray(v) for v in (1.0, 2.0, -0.5, 3.0)))
    np.testing.assert_allclose(got, want, rtol=1e-4)

  def test_a_constant_channel_stays_finite(self):
    zero, one = jnp.zeros(1), jnp.ones(1)
    for var, other in ((zero, one), (one, zero), (zero, zero)):
      kl = gaussian_kl(zero, var, zero, other)
      self.assertTrue(bool(jnp.all(jnp.isfinite(kl))))
      self.assertGreaterEqual(float(kl[0]), 0)


class BnpTest(pruning.GuaranteesMixin, parameterized.TestCase):
  def outcome(self):
    return pruned(0.5)

  def test_divergences_are_those_of_the_norms_inputs(self):
    state = pruning.model()
    got = divergences(NET, state, images())
    kernel = np.asarray(state.params['conv1']['kernel'])
    spec = data.spec('synthetic')
    x = (np.asarray(images()) - np.asarray(spec.mean)) / np.asarray(spec.std)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = sum(
      x[:, i : i + 8, j : j + 8] @ kernel[i, j]
      for i in range(3)
      for j in range(3)
    ).reshape(-1, 4)
    v1, v2 = out.var(0, ddof=1), np.asarray(state.batch_stats['bn1']['var'])
    shift = out.mean(0) - np.asarray(state.batch_stats['bn1']['mean'])
    want = 0.5 * np.log(v2 / v1) + (v1 + shift**2) / (2 * v2) - 0.5
    np.testing.assert_allclose(got['bn1'], want, rtol=1e-3)
    self.assertEqual(got['bn2'].shape, (8,))

  def test_equal_statistics_have_no_divergence_and_prune_nothing(self):
    state = fitted(WIDE)
    for kl in divergences(WIDE, state, images()).values():
      np.testing.assert_allclose(kl, np.zeros(len(kl)), atol=1e-5)
    # Rounding leaves divergences of 1e-7; beyond the largest possible
    # deviation among 32 channels none of them is an outlier.
    carry = pruned(31 / 32**0.5, state, WIDE)
    self.assertEqual(int(surgery.num_pruned(carry.extra['masks'])), 0)

  @parameterized.parameters(('bn1', 3), ('bn2', 20))
  def test_a_planted_shift_is_the_only_channel_pruned(self, name, channel):
    state = with_mean(fitted(WIDE), name, channel, 50.0)
    scores = divergences(WIDE, state, images())
    masks = surgery.keep_inliers(scores, 3.0)[name]
    np.testing.assert_array_equal(
      np.flatnonzero(np.asarray(masks) == 0), [channel]
    )
    carry = pruned(3.0, state, WIDE)
    self.assertEqual(float(carry.extra['masks'][name][channel]), 0)
    self.assertEqual(float(carry.model.params[name]['scale'][channel]), 0)

  def test_reads_one_batch_of_the_clean_set(self):
    score, prune = defenses.bnp(NET).phases
    self.assertEqual((score.reads, score.num_steps), ('clean', 1))
    self.assertEqual((score.batch_size, score.augment), (256, True))
    self.assertEqual((prune.reads, prune.num_steps), ('none', 0))

  @parameterized.parameters(
    (dict(u=-1.0), '`u=-1.0` must not be negative'),
    (dict(batch_size=0), '`batch_size=0` must be positive'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.bnp(NET, defenses.BnpHParams(**values))

  @parameterized.parameters(small_nets.linear_net, small_nets.conv_net)
  def test_a_network_without_norms_or_taps_is_refused(self, make):
    with self.assertRaisesRegex(checks.Unsupported, 'its `tap`'):
      defenses.bnp(make())
