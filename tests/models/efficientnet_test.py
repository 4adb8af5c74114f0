import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from bdjax.models import efficientnet, inverted
from tests.models import nets

TINY = {'width': 4, 'blocks': 1}


class EfficientNetTest(parameterized.TestCase):
  def test_number_of_weights_and_convolutions(self):
    self.assertEqual(nets.num_weights('efficientnet_b3', 1000), 12_233_232)
    info = models.make('efficientnet_b3', nets.spec(classes=1000)).info
    # 26 blocks, of which the first stage's two have nothing to widen.
    self.assertLen(info.conv_taps, 26 * 3 - 2 + 1)
    self.assertIn('features.7.1.block.3.0', info.conv_taps)
    self.assertEqual(info.conv_taps[-1], 'features.8.0')
    channels = {group.tap: group.channels for group in info.prune_graph}
    self.assertEqual(channels['features.0.1'], 40)
    self.assertEqual(channels['features.7.1.block.3.1'], 384)
    self.assertEqual(channels['features.8.1'], 1536)

  def test_sizes(self):
    model = models.make('efficientnet_b3', nets.spec(), **TINY)
    taps = ['features.0.0', *(f'features.{i}.0' for i in range(1, 8))]
    self.assertEqual(nets.sides(model, *taps), [16, 16, 8, 4, 2, 2, 1, 1])

  def test_initial_weights(self):
    model = models.make('efficientnet_b3', nets.spec(), blocks=1, stages=2)
    params = model.init(jax.random.key(0)).params
    depthwise = params['features_2_0_block_1_0']['kernel']
    self.assertEqual(depthwise.shape, (3, 3, 1, 144))
    np.testing.assert_allclose(
      depthwise.std(), (2 / (9 * 144)) ** 0.5, rtol=0.08
    )
    head = np.abs(params['head']['kernel'])
    self.assertLessEqual(head.max(), 10**-0.5)
    self.assertGreater(head.max(), 0.97 * 10**-0.5)
    np.testing.assert_array_equal(params['head']['bias'], 0)

  @parameterized.parameters({'dropout': 0.5}, {'stochastic_depth': 0.5})
  def test_what_is_random_needs_a_key_in_training_only(self, **options):
    model = models.make(
      'efficientnet_b3', nets.spec(8), **TINY, stages=1, **options
    )
    state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.eval_shape(lambda: nets.images(8))
    with self.assertRaisesRegex(ValueError, '`key=`'):
      jax.eval_shape(lambda s, x: model.apply(s, x, train=True), state, images)
    jax.eval_shape(model.apply, state, images)

  def test_later_blocks_are_skipped_more(self):
    model = models.make(
      'efficientnet_b3',
      nets.spec(8),
      width=1,
      blocks=2,
      stages=3,
      stochastic_depth=0.7,
    )
    rates = nets.rates_of_stochastic_depth(model)
    # Six blocks; the second one of each stage adds its input, and so do
    # first ones where shapes allow.
    self.assertEqual(rates, sorted(rates))
    expected = 0.7 * np.arange(6) / 6
    self.assertContainsSubset(np.round(expected[1::2], 6), np.round(rates, 6))
    self.assertContainsSubset(np.round(rates, 6), np.round(expected, 6))

  def test_blocks(self):
    net = efficientnet.EfficientNet(num_classes=10)
    blocks = {block.place: block for block in net.blocks()}
    self.assertLen(blocks, 26)
    for place, expected in (
      ('features.1.0', (40, 40, 24, 3, 1, 10)),
      ('features.2.0', (24, 144, 32, 3, 2, 6)),
      ('features.5.4', (136, 816, 136, 5, 1, 34)),
      ('features.6.0', (136, 816, 232, 5, 2, 34)),
      ('features.7.1', (384, 2304, 384, 3, 1, 96)),
    ):
      self.assertEqual(blocks[place], inverted.Block(place, *expected))
    self.assertEqual(net.last(), ('features.8', 1536))
