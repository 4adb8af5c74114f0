import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from tests.models import nets

TINY = {'width': 4, 'blocks': 2}


class DenseNetTest(parameterized.TestCase):
  def test_number_of_weights_and_convolutions(self):
    self.assertEqual(nets.num_weights('densenet161', 1000), 28_681_000)
    info = models.make('densenet161', nets.spec(classes=1000)).info
    self.assertLen(info.conv_taps, 2 * (6 + 12 + 36 + 24) + 3)
    self.assertEqual(
      info.conv_taps[-1], 'features.denseblock4.denselayer24.conv2'
    )
    self.assertLen(info.prune_graph, 161)
    self.assertEqual(info.prune_graph[-1].channels, 2208)

  def test_sizes(self):
    model = models.make('densenet161', nets.spec(), **TINY)
    taps = ('features.conv0', 'stage1', 'stage2', 'stage3', 'stage4')
    self.assertEqual(nets.sides(model, *taps), [16, 8, 4, 2, 1])

  def test_prune_graph(self):
    info = models.make('densenet161', nets.spec(), **TINY).info
    found = {g.tap.removeprefix('features.'): g for g in info.prune_graph}
    self.assertEqual(
      {name: group.channels for name, group in found.items()},
      {
        'norm0': 4,
        'denseblock1.denselayer1.norm1': 4,
        'denseblock1.denselayer1.norm2': 8,
        'denseblock1.denselayer2.norm1': 6,
        'denseblock1.denselayer2.norm2': 8,
        'transition1.norm': 8,
        'denseblock2.denselayer1.norm1': 4,
        'denseblock2.denselayer1.norm2': 8,
        'denseblock2.denselayer2.norm1': 6,
        'denseblock2.denselayer2.norm2': 8,
        'transition2.norm': 8,
        'denseblock3.denselayer1.norm1': 4,
        'denseblock3.denselayer1.norm2': 8,
        'denseblock3.denselayer2.norm1': 6,
        'denseblock3.denselayer2.norm2': 8,
        'transition3.norm': 8,
        'denseblock4.denselayer1.norm1': 4,
        'denseblock4.denselayer1.norm2': 8,
        'denseblock4.denselayer2.norm1': 6,
        'denseblock4.denselayer2.norm2': 8,
        'norm5': 8,
      },
    )
    self.assertEqual(found['norm0'].conv, ('features_conv0',))
    inner = found['denseblock2.denselayer1.norm2']
    self.assertEqual(inner.conv, ('features_denseblock2_denselayer1_conv1',))
    self.assertIsNone(found['transition1.norm'].conv)
    self.assertIsNone(found['transition1.norm'].previous)

  def test_layers_see_the_maps_of_all_before_them(self):
    model = models.make('densenet161', nets.spec(), **TINY)
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images())
    name = 'features.denseblock1.denselayer{}.{}'.format
    first = seen[name(1, 'norm1.in')]
    both = np.concatenate([first, seen[name(1, 'conv2')]], -1)
    np.testing.assert_array_equal(seen[name(2, 'norm1.in')], both)
    full = np.concatenate([both, seen[name(2, 'conv2')]], -1)
    np.testing.assert_array_equal(seen['stage1'], full)

  def test_a_layer_and_a_transition_written_out(self):
    model = models.make('densenet161', nets.spec(), **TINY)
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images())

    def norm_relu(x, name):
      p, s = state.params[name], state.batch_stats[name]
      return np.maximum(nets.batch_norm(x, p, s), 0)

    kernel = lambda name: state.params[name]['kernel']
    layer = 'features_denseblock1_denselayer1_'
    x = norm_relu(
      seen['features.denseblock1.denselayer1.norm1.in'], layer + 'norm1'
    )
    x = norm_relu(nets.conv(x, kernel(layer + 'conv1')), layer + 'norm2')
    x = nets.conv(x, kernel(layer + 'conv2'), 1, 1)
    nets.assert_close(seen['features.denseblock1.denselayer1.conv2'], x)
    x = norm_relu(seen['stage1'], 'features_transition1_norm')
    x = nets.conv(x, kernel('features_transition1_conv'))
    x = x.reshape(2, 4, 2, 4, 2, 4).mean((2, 4))
    place = 'features.denseblock2.denselayer1.norm1.in'
    nets.assert_close(seen[place], x)
    x = norm_relu(seen['stage4'], 'features_norm5')
    nets.assert_close(seen['penultimate'], x.mean((1, 2)))

  def test_initial_weights(self):
    model = models.make('densenet161', nets.spec(), width=32, blocks=1)
    params = model.init(jax.random.key(0)).params
    kernel = params['features_denseblock1_denselayer1_conv2']['kernel']
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.03)
    np.testing.assert_array_equal(params['head']['bias'], 0)

  @parameterized.parameters(
    (32, {'width': 5}, '`width=5` must be even'),
    (16, {}, "Use 'preactresnet18'"),
  )
  def test_bad_options(self, side, options, message):
    with self.assertRaisesRegex(ValueError, message):
      models.make('densenet161', nets.spec(side), **options)
