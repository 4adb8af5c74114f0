"""Channel masks: by hand on two norms, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, data, models, surgery
from tests import small_nets

NET = small_nets.conv_net(width=4)
KEY = jax.random.key(0)
LOW, HIGH = np.asarray([1.0, 0.0, 0.5, 2.0]), np.asarray([1.0, 3.0, 0.0, 1.0])


def masks():
  return {'bn0': jnp.asarray(LOW), 'bn1': jnp.asarray(HIGH)}


def model():
  state = NET.init(KEY)
  params = dict(state.params)
  for i, name in enumerate(('bn0', 'bn1')):
    params[name] = {
      'scale': jnp.arange(1.0, 5.0) + i,
      'bias': jnp.arange(4.0) - i,
    }
  return type(state)(params=params, batch_stats=state.batch_stats)


class ApplyChannelMaskTest(parameterized.TestCase):
  def test_scales_are_multiplied_and_nothing_else(self):
    before, after = model(), surgery.apply_channel_mask(NET, model(), masks())
    for name, mask in (('bn0', LOW), ('bn1', HIGH)):
      old, new = before.params[name], after.params[name]
      np.testing.assert_allclose(new['scale'], old['scale'] * mask)
      np.testing.assert_array_equal(new['bias'], old['bias'])
    rest = lambda s: {k: v for k, v in s.params.items() if k[:2] != 'bn'}
    chex.assert_trees_all_equal(rest(before), rest(after))
    chex.assert_trees_all_equal(before.batch_stats, after.batch_stats)

  def test_biases_are_multiplied_where_factors_are_given(self):
    bias = {'bn0': jnp.zeros(4), 'bn1': jnp.full(4, 2.0)}
    after = surgery.apply_channel_mask(NET, model(), masks(), bias=bias)
    np.testing.assert_array_equal(after.params['bn0']['bias'], np.zeros(4))
    want = 2 * (np.arange(4.0) - 1)
    np.testing.assert_allclose(after.params['bn1']['bias'], want)

  def test_full_masks_change_nothing(self):
    ones = surgery.full_masks(NET, model())
    self.assertEqual(set(ones), {'bn0', 'bn1'})
    same = surgery.apply_channel_mask(NET, model(), ones, bias=ones)
    chex.assert_trees_all_equal(same, model())

  def test_a_pruned_channel_is_a_constant_and_with_its_bias_nothing(self):
    state = model()
    images = jnp.asarray(small_nets.random_images(0, 2), jnp.float32) / 255
    zero = {'bn0': jnp.zeros(4), 'bn1': jnp.zeros(4)}
    for bias, want in ((None, state.params['bn1']['bias']), (zero, 0.0)):
      masked = surgery.apply_channel_mask(NET, state, zero, bias=bias)
      conv2 = NET.features(masked, images)['conv2']
      # One input of the last convolution for all places and images.
      inner = jax.nn.relu(jnp.broadcast_to(want, (4,)))
      out = jnp.einsum('hwio,i->o', masked.params['conv2'], inner)
      np.testing.assert_allclose(conv2[0, 4, 4], out, rtol=1e-4, atol=1e-5)

  def test_nested_norms_have_dotted_names(self):
    net = models.make('preactresnet18', data.spec('cifar10'), width=2)
    names = surgery.norm_names(net)
    self.assertLen(names, 16)
    self.assertEqual(names[0], 'stage1_0.bn1')
    state = net.init(KEY)
    ones = surgery.full_masks(net, state)
    ones['stage2_1.bn2'] = jnp.zeros(4)
    after = surgery.apply_channel_mask(net, state, ones).params
    np.testing.assert_array_equal(after['stage2_1']['bn2']['scale'], 0)
    self.assertTrue(np.all(after['stage2_1']['bn1']['scale'] == 1))

  def test_masks_may_be_a_stack(self):
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), masks())
    apply = lambda m: surgery.apply_channel_mask(NET, model(), m)
    both = jax.vmap(apply)(stacked)
    np.testing.assert_allclose(
      both.params['bn0']['scale'][1], 2 * LOW * np.arange(1.0, 5.0)
    )

  def test_a_network_without_norms_is_refused(self):
    net = small_nets.linear_net()
    with self.assertRaisesRegex(checks.Unsupported, 'take another'):
      surgery.apply_channel_mask(net, net.init(KEY), {})

  @parameterized.parameters(('params', 'scale'), ('batch_stats', 'var'))
  def test_norm_leaves_are_found_by_name(self, tree, leaf):
    found = surgery.norm_leaves(NET, getattr(model(), tree), leaf)
    want = getattr(model(), tree)['bn1'][leaf]
    np.testing.assert_array_equal(found['bn1'], want)


class HardMasksTest(parameterized.TestCase):
  @parameterized.parameters(
    (-1.0, [1, 1, 1, 1]), (0.0, [1, 0, 1, 1]), (0.5, [1, 0, 0, 1])
  )
  def test_keep_above_drops_what_is_at_most_the_threshold(self, tau, want):
    kept = surgery.keep_above(masks(), tau)
    np.testing.assert_array_equal(kept['bn0'], want)
    self.assertEqual(kept['bn0'].dtype, masks()['bn0'].dtype)

  @parameterized.parameters(
    # Mean 3, unbiased deviation 4: deviations −0.73, −0.49, −0.24, 1.47.
    ('above', 1.4, [1, 1, 1, 0]),
    ('above', 1.6, [1, 1, 1, 1]),
    ('below', 0.7, [0, 1, 1, 1]),
    ('below', 0.8, [1, 1, 1, 1]),
    ('below', 0.4, [0, 0, 1, 1]),
  )
  def test_keep_inliers(self, side, u, want):
    score = jnp.asarray([0.0, 1.0, 2.0, 9.0]) * 4 / np.sqrt(50 / 3)
    score += 3 - jnp.mean(score)
    np.testing.assert_allclose(np.std(score, ddof=1), 4, rtol=1e-6)
    kept = surgery.keep_inliers({'n': score}, u, side=side)['n']
    np.testing.assert_array_equal(kept, want)

  def test_layers_are_judged_by_themselves(self):
    quiet = jnp.asarray([0.0] * 15 + [1.0])
    loud = jnp.full(16, 100.0)
    kept = surgery.keep_inliers({'a': quiet, 'b': loud}, 3.0)
    np.testing.assert_array_equal(np.flatnonzero(kept['a'] == 0), [15])
    self.assertEqual(float(kept['b'].sum()), 16)

  def test_a_layer_of_one_channel_is_kept(self):
    kept = surgery.keep_inliers({'n': jnp.asarray([5.0])}, 0.0)
    np.testing.assert_array_equal(kept['n'], [1.0])

  def test_unknown_side_is_refused(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'above'"):
      surgery.keep_inliers({'n': jnp.zeros(3)}, 1.0, side='abov')

  def test_pruned_channels_are_counted(self):
    self.assertEqual(int(surgery.num_pruned(masks())), 2)
    self.assertEqual(int(surgery.num_pruned({})), 0)


class NormInputsTest(parameterized.TestCase):
  def test_what_the_norms_see(self):
    net = models.make('tiny', data.spec('synthetic'), width=4)
    state = net.init(KEY)
    images = jnp.asarray(small_nets.random_images(0, 2), jnp.float32) / 255
    taps = net.features(state, images)
    inputs = surgery.norm_inputs(net, state, images)
    self.assertEqual(set(inputs), {'bn1', 'bn2'})
    # A convolution's output is its norm's input.
    np.testing.assert_array_equal(inputs['bn2'], taps['conv2'])

  def test_a_network_that_does_not_name_its_taps_is_refused(self):
    with self.assertRaisesRegex(checks.Unsupported, 'its `tap`'):
      surgery.norm_inputs(NET, model(), jnp.zeros((1, 8, 8, 3)))
