import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from bdjax.models import inverted, mobilenet
from tests.models import nets

TINY = {'width': 2, 'blocks': 1}


class MobileNetTest(parameterized.TestCase):
  def test_number_of_weights_and_convolutions(self):
    self.assertEqual(nets.num_weights('mobilenet_v3_large', 1000), 5_483_032)
    info = models.make('mobilenet_v3_large', nets.spec(classes=1000)).info
    # The first block has nothing to widen; the last convolution follows.
    self.assertLen(info.conv_taps, 2 + 14 * 3 + 1)
    self.assertEqual(
      info.conv_taps[:2], tuple(f'features.1.block.{i}.0' for i in (0, 1))
    )
    self.assertEqual(info.conv_taps[-1], 'features.16.0')
    self.assertLen(info.prune_graph, 46)
    self.assertEqual(info.norm_decay, 0.99)
    squeezed = [t for t in info.taps if t.endswith('fc1')]
    self.assertEqual(
      squeezed,
      [f'features.{i}.block.2.fc1' for i in (4, 5, 6, 11, 12, 13, 14, 15)],
    )

  def test_sizes(self):
    model = models.make('mobilenet_v3_large', nets.spec(), **TINY)
    taps = ['features.0.0', *(f'features.{i}' for i in range(1, 7))]
    self.assertEqual(nets.sides(model, *taps), [16, 16, 8, 4, 2, 2, 1])

  def test_blocks(self):
    net = mobilenet.MobileNetV3(num_classes=10)
    blocks = {block.place: (block, swish) for block, swish in net.blocks()}
    self.assertLen(blocks, 15)
    for number, swish, expected in (
      (1, False, (16, 16, 16, 3, 1, 0)),
      (4, False, (24, 72, 40, 5, 2, 24)),
      (6, False, (40, 120, 40, 5, 1, 32)),
      (8, True, (80, 200, 80, 3, 1, 0)),
      (11, True, (80, 480, 112, 3, 1, 120)),
      (15, True, (160, 960, 160, 5, 1, 240)),
    ):
      place = f'features.{number}'
      block = inverted.Block(place, *expected)
      self.assertEqual(blocks[place], (block, swish))
    self.assertEqual(net.last(), ('features.16', 960))

  def test_fewer_stages(self):
    net = mobilenet.MobileNetV3(num_classes=10, stages=2)
    self.assertLen(net.blocks(), 3)
    self.assertEqual(net.last(), ('features.4', 6 * 24))

  def test_hidden_units_are_rectified_and_dropped(self):
    make = lambda **options: models.make(
      'mobilenet_v3_large', nets.spec(8), width=1, stages=1, **options
    )
    model, random = make(), make(dropout=0.5)
    state, x = nets.lively(model), nets.images(8)
    hidden = jax.random.normal(jax.random.key(1), (2, 80))
    edits = {'classifier.0': lambda _: hidden}

    @jax.jit
    def run(key):
      plain = model.features(state, x, edits=edits)
      dropped = random.features(state, x, train=True, edits=edits, key=key)
      return plain['penultimate'], dropped['penultimate']

    plain, dropped = (np.asarray(a) for a in run(jax.random.key(0)))
    swish = np.asarray(hidden) * np.clip(np.asarray(hidden) + 3, 0, 6) / 6
    nets.assert_close(plain, swish)
    kept = dropped != 0
    self.assertBetween(kept.mean(), 0.3, 0.7)
    nets.assert_close(dropped[kept], 2 * swish[kept])
    with self.assertRaisesRegex(ValueError, '`key=`'):
      random.apply(state, x, train=True)

  def test_initial_weights(self):
    model = models.make('mobilenet_v3_large', nets.spec(), blocks=1, stages=3)
    params = model.init(jax.random.key(0)).params
    depthwise = params['features_3_block_1_0']['kernel']
    np.testing.assert_allclose(
      depthwise.std(), (2 / (25 * 72)) ** 0.5, rtol=0.07
    )
    for name in ('classifier_0', 'head'):
      np.testing.assert_allclose(params[name]['kernel'].std(), 0.01, rtol=0.03)
      np.testing.assert_array_equal(params[name]['bias'], 0)
