import jax
import numpy as np
from absl.testing import parameterized

from bdjax import models
from tests.models import nets


class ResNet18Test(parameterized.TestCase):
  def test_number_of_weights(self):
    self.assertEqual(nets.num_weights('resnet18', 10), 11_173_962)

  def test_with_the_stem_for_imagenet_it_is_torchvisions(self):
    weights = nets.num_weights('resnet18', 1000, stem='imagenet')
    self.assertEqual(weights, 11_689_512)

  def test_convolutions_and_norms(self):
    info = models.make('resnet18', nets.spec()).info
    self.assertLen(info.conv_taps, 16)
    self.assertEqual(info.conv_taps[-1], 'stage4.1.conv2')
    self.assertLen(info.prune_graph, 20)  # stem, 16, and three projections
    graph = {group.norm: group for group in info.prune_graph}
    self.assertEqual(graph['stem_bn',].conv, ('stem',))
    self.assertEqual(
      graph['stage2_0', 'shortcut_bn'].conv, ('stage2_0', 'shortcut')
    )
    self.assertNotIn(('stage1_0', 'shortcut_bn'), graph)

  def test_taps_by_forward_depth(self):
    taps = models.make('resnet18', nets.spec()).info.taps
    block = [t for t in taps if t.startswith('stage3.0') and '.in' not in t]
    self.assertEqual(
      [t.removeprefix('stage3.0.') for t in block],
      ['conv1', 'bn1', 'conv2', 'bn2', 'shortcut', 'shortcut_bn'],
    )
    order = ['input', 'stem', 'stem_bn', 'stage1', 'stage2', 'stage3']
    order += ['stage4', 'penultimate_map', 'penultimate', 'logits']
    self.assertEqual([t for t in taps if t in order], order)

  def test_sizes(self):
    small = models.make('resnet18', nets.spec(), width=2, blocks=1)
    large = models.make(
      'resnet18', nets.spec(), width=2, blocks=1, stem='imagenet'
    )
    taps = ('stem', 'stage1', 'stage2', 'stage4')
    self.assertEqual(nets.sides(small, *taps), [32, 32, 16, 4])
    self.assertEqual(nets.sides(large, *taps), [16, 8, 4, 1])

  def test_a_block_written_out(self):
    model = models.make('resnet18', nets.spec(8), width=2, blocks=1)
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images(8))
    p, s = (t['stage2_0'] for t in (state.params, state.batch_stats))
    norm = lambda x, name: nets.batch_norm(x, p[name], s[name])
    x = seen['stage1']
    self.assertEqual(x.min(), 0)  # rectified
    out = norm(nets.conv(x, p['conv1']['kernel'], 2, 1), 'bn1')
    out = norm(nets.conv(np.maximum(out, 0), p['conv2']['kernel'], 1, 1), 'bn2')
    short = norm(nets.conv(x, p['shortcut']['kernel'], 2), 'shortcut_bn')
    nets.assert_close(seen['stage2'], np.maximum(out + short, 0))
    nets.assert_close(seen['penultimate'], seen['stage4'].mean((1, 2)))

  def test_initial_weights_are_torchs_defaults(self):
    model = models.make('resnet18', nets.spec(), width=8, blocks=1)
    params = model.init(jax.random.key(0)).params
    kernel = np.abs(params['stage3_0']['conv2']['kernel'])
    self.assertLessEqual(kernel.max(), (9 * 32) ** -0.5)
    self.assertGreater(kernel.max(), 0.99 * (9 * 32) ** -0.5)

  @parameterized.parameters(
    ({'stem': 'cifar'}, "`stem='cifar'`.*small"), ({'blocks': 0}, 'blocks=0')
  )
  def test_bad_options(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      models.make('resnet18', nets.spec(), **options)


class ResNet50Test(parameterized.TestCase):
  def test_number_of_weights(self):
    self.assertEqual(nets.num_weights('resnet50', 1000), 25_557_032)

  def test_convolutions_and_norms(self):
    info = models.make('resnet50', nets.spec(classes=1000)).info
    self.assertLen(info.conv_taps, 48)
    self.assertLen(info.prune_graph, 53)  # stem, 48, and four projections

  def test_the_small_stem_keeps_small_images(self):
    for stem, sides in (('imagenet', [16, 8, 1]), ('small', [32, 32, 4])):
      model = models.make('resnet50', nets.spec(), width=2, blocks=1, stem=stem)
      self.assertEqual(nets.sides(model, 'stem', 'stage1', 'stage4'), sides)

  def test_a_block_written_out(self):
    model = models.make(
      'resnet50', nets.spec(8), width=2, blocks=1, stem='small'
    )
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images(8))
    p, s = (t['stage2_0'] for t in (state.params, state.batch_stats))
    norm = lambda x, name: nets.batch_norm(x, p[name], s[name])
    x = out = seen['stage1']
    # The second convolution has the stride, as in torchvision.
    for i, stride, pad in ((1, 1, 0), (2, 2, 1), (3, 1, 0)):
      out = np.maximum(out, 0)
      kernel = p[f'conv{i}']['kernel']
      out = norm(nets.conv(out, kernel, stride, pad), f'bn{i}')
    short = norm(nets.conv(x, p['shortcut']['kernel'], 2), 'shortcut_bn')
    nets.assert_close(seen['stage2'], np.maximum(out + short, 0))

  def test_the_stem_for_imagenet_written_out(self):
    model = models.make('resnet50', nets.spec(9), width=2, blocks=1)
    state = nets.lively(model)
    seen = nets.features(model, state, nets.images(9))
    out = nets.conv(seen['stem.in'], state.params['stem']['kernel'], 2, 3)
    nets.assert_close(seen['stem'], out)
    active = np.maximum(seen['stem_bn'], 0)
    pooled = seen['stage1.0.conv1.in']
    self.assertEqual(pooled.shape, (2, 3, 3, 2))
    np.testing.assert_array_equal(
      pooled[:, 1, 2], active[:, 1:4, 3:5].max((1, 2))
    )

  def test_initial_weights_are_torchvisions(self):
    model = models.make('resnet50', nets.spec(), width=8, blocks=1)
    params = model.init(jax.random.key(0)).params
    kernel = params['stage4_0']['conv2']['kernel']
    np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.03)
    bias = np.abs(params['head']['bias'])
    self.assertLessEqual(bias.max(), 256**-0.5)
    self.assertGreater(bias.max(), 0.5 * 256**-0.5)
