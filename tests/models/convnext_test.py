import functools
import math

import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from tests.models import nets

TINY = {'width': 4, 'blocks': 1}
erf = np.vectorize(math.erf)


@functools.cache
def seen():
  """(weights, activations) of a tiny one."""
  model = models.make('convnext_tiny', nets.spec(), **TINY)
  state = nets.lively(model)
  return state.params, nets.features(model, state, nets.images())


class ConvNeXtTest(parameterized.TestCase):
  def test_number_of_weights(self):
    self.assertEqual(nets.num_weights('convnext_tiny', 1000), 28_589_128)

  def test_convolutions_and_sizes(self):
    model = models.make('convnext_tiny', nets.spec(classes=1000))
    self.assertLen(model.info.conv_taps, 18 + 3)
    self.assertEqual(model.info.conv_taps[3], 'features.2.1')
    self.assertEqual(model.info.conv_taps[-1], 'features.7.2.block.0')
    self.assertEqual(model.info.norm_paths, ())
    stages = [f'stage{i}' for i in (1, 2, 3, 4)]
    self.assertEqual(nets.sides(model, *stages), [8, 4, 2, 1])

  def test_sides_that_are_no_multiples(self):
    model = models.make('convnext_tiny', nets.spec(47), **TINY)
    self.assertEqual(
      nets.sides(model, 'stage1', 'stage2', 'stage4'), [11, 5, 1]
    )

  def test_a_block_written_out(self):
    p, features = seen()
    x = features['stage1']
    norm = p['features_2_0']
    x = nets.conv(nets.layer_norm(x, norm), p['features_2_1']['kernel'], 2)
    x = x + np.asarray(p['features_2_1']['bias'])
    nets.assert_close(features['features.2.1'], x)
    name = 'features_3_0_block_{}'.format
    out = nets.conv(x, p[name(0)]['kernel'], 1, 3, groups=8)
    out = nets.layer_norm(out + np.asarray(p[name(0)]['bias']), p[name(2)])
    out = out @ np.asarray(p[name(3)]['kernel']) + np.asarray(
      p[name(3)]['bias']
    )
    out = out * (1 + erf(out / 2**0.5)) / 2
    out = out @ np.asarray(p[name(5)]['kernel']) + np.asarray(
      p[name(5)]['bias']
    )
    out = x + np.asarray(p['features_3_0_layer_scale']) * out
    nets.assert_close(features['stage2'], out)

  def test_head_normalizes_the_pooled_vector(self):
    params, features = seen()
    pooled = features['stage4'].mean((1, 2))
    nets.assert_close(features['avgpool'], pooled)
    out = nets.layer_norm(features['avgpool'], params['classifier_0'])
    nets.assert_close(features['penultimate'], out)

  def test_initial_weights(self):
    model = models.make('convnext_tiny', nets.spec(), width=16, blocks=1)
    params = model.init(jax.random.key(0)).params
    for name in ('features_7_0_block_0', 'features_7_0_block_3', 'head'):
      np.testing.assert_allclose(params[name]['kernel'].std(), 0.02, rtol=0.05)
      np.testing.assert_array_equal(params[name]['bias'], 0)
    np.testing.assert_array_equal(
      params['features_1_0_layer_scale'], np.float32(1e-6)
    )

  def test_small_images_are_refused(self):
    with self.assertRaisesRegex(ValueError, "Use 'preactresnet18'"):
      models.make('convnext_tiny', nets.spec(16))

  def test_stochastic_depth_needs_a_key_in_training_only(self):
    model = models.make(
      'convnext_tiny', nets.spec(), **TINY, stochastic_depth=0.5
    )
    state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.eval_shape(nets.images)
    with self.assertRaisesRegex(ValueError, '`key=`.*stochastic depth'):
      jax.eval_shape(lambda s, x: model.apply(s, x, train=True), state, images)
    jax.eval_shape(model.apply, state, images)

  def test_the_last_block_is_skipped_most(self):
    model = models.make(
      'convnext_tiny', nets.spec(), **TINY, stochastic_depth=0.6
    )
    rates = nets.rates_of_stochastic_depth(model)
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6])
