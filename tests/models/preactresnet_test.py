import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models, tree
from tests.reference import golden, torch_layout

CIFAR10 = golden.spec()


class PreActResNet18Test(parameterized.TestCase):
  def test_number_of_weights(self):
    model = models.make('preactresnet18', CIFAR10)
    state = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(tree.count(state.params), 11_171_146)
    self.assertLen(jax.tree.leaves(state.params), 54)

  def test_conv_taps_are_the_convolutions_of_the_stages(self):
    info = models.make('preactresnet18', CIFAR10).info
    self.assertLen(info.conv_taps, 16)
    self.assertEqual(info.conv_taps[0], 'stage1.0.conv1')
    self.assertEqual(info.conv_taps[-1], 'stage4.1.conv2')
    self.assertNotIn('stem', info.conv_taps)
    self.assertFalse([t for t in info.conv_taps if 'shortcut' in t])

  def test_taps_by_forward_depth(self):
    taps = models.make('preactresnet18', CIFAR10).info.taps
    block = [t for t in taps if t.startswith('stage2.0') and '.in' not in t]
    self.assertEqual(
      [t.removeprefix('stage2.0.') for t in block],
      ['bn1', 'conv1', 'bn2', 'conv2', 'shortcut'],
    )
    order = ['input', 'stem.in', 'stem', 'stage1', 'stage2', 'stage3']
    order += ['stage4', 'penultimate_map', 'penultimate', 'logits']
    self.assertEqual([t for t in taps if t in order], order)
    shortcuts = [t for t in taps if t.endswith('shortcut')]
    self.assertEqual(shortcuts, [f'stage{s}.0.shortcut' for s in (2, 3, 4)])

  def test_prune_graph_names_the_producing_convolution(self):
    info = models.make('preactresnet18', CIFAR10, width=8).info
    graph = {group.norm: group for group in info.prune_graph}
    self.assertLen(graph, 16)
    self.assertEqual(graph['stage1_0', 'bn1'].conv, ('stem',))
    self.assertIsNone(graph['stage2_0', 'bn1'].conv)
    self.assertEqual(graph['stage3_1', 'bn2'].conv, ('stage3_1', 'conv1'))
    channels = [group.channels for group in info.prune_graph]
    widths = [8, 8, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32, 32, 64, 64, 64]
    self.assertEqual(channels, widths)

  def test_prune_graph_names_the_convolution_before_in_module_order(self):
    info = models.make('preactresnet18', CIFAR10, width=8).info
    before = {
      '.'.join(group.norm): '.'.join(group.previous)
      for group in info.prune_graph
    }
    self.assertEqual(before['stage1_0.bn1'], 'stem')
    self.assertEqual(before['stage1_1.bn1'], 'stage1_0.conv2')
    self.assertEqual(before['stage2_0.bn1'], 'stage1_1.conv2')
    # The projection of the block before stands behind its second convolution.
    for stage in (2, 3, 4):
      here = before[f'stage{stage}_1.bn1']
      self.assertEqual(here, f'stage{stage}_0.shortcut')
    for group in info.prune_graph:
      if group.conv is not None:
        self.assertEqual(group.previous, group.conv)

  def test_prune_graph_names_the_taps(self):
    info = models.make('preactresnet18', CIFAR10, width=8).info
    self.assertEqual(info.prune_graph[0].tap, 'stage1.0.bn1')
    self.assertEqual(info.prune_graph[-1].tap, 'stage4.1.bn2')

  def test_a_stride_of_two_pads_both_sides(self):
    # 'SAME' would pad the far sides only and give other numbers.
    model = models.make('preactresnet18', CIFAR10, width=2)
    state = model.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
    features = model.features(state, image)
    x = np.asarray(features['stage2.0.conv1.in'])[0]
    kernel = np.asarray(state.params['stage2_0']['conv1']['kernel'])
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    corner = np.einsum('hwc,hwcd->d', padded[:3, :3], kernel)
    second = np.einsum('hwc,hwcd->d', padded[2:5, 2:5], kernel)
    out = features['stage2.0.conv1'][0]
    np.testing.assert_allclose(out[0, 0], corner, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out[1, 1], second, rtol=1e-4, atol=1e-5)

  def test_initial_weights_are_uniform_by_fan_in(self):
    model = models.make('preactresnet18', CIFAR10, width=8)
    params = model.init(jax.random.key(0)).params
    for path, fan_in in (
      (('stage3_0', 'conv2', 'kernel'), 9 * 32),
      (('head', 'kernel'), 64),
      (('head', 'bias'), 64),
    ):
      leaf = params
      for name in path:
        leaf = leaf[name]
      bound = fan_in**-0.5
      self.assertLessEqual(float(jnp.abs(leaf).max()), bound)
      self.assertGreater(float(jnp.abs(leaf).max()), 0.7 * bound)
    kernel = params['stage3_0']['conv2']['kernel']
    deviation = (9 * 32 * 3) ** -0.5
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
    np.testing.assert_array_equal(params['stage1_0']['bn1']['scale'], 1)
    np.testing.assert_array_equal(params['stage1_0']['bn1']['bias'], 0)


class ReferenceTest(parameterized.TestCase):
  """Numbers of the network's published torch implementation."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.expected = golden.arrays('preact_w8')
    cls.model, cls.state = golden.network(), golden.state()
    images = golden.images('preact_w8', dtype=jnp.float32)
    cls.features = jax.jit(cls.model.features)(cls.state, images)
    cls.logits_train, cls.after = jax.jit(
      lambda state, images: cls.model.apply(state, images, train=True)
    )(cls.state, images)

  def assert_close(self, actual, expected):
    """Ten times the difference between torch in float32 and in float64."""
    golden.assert_close(actual, expected, 2e-6)

  def test_inference(self):
    self.assert_close(self.features['logits'], self.expected['logits_eval'])
    self.assert_close(
      self.features['penultimate'], self.expected['features_eval']
    )

  def test_features_are_not_rectified(self):
    self.assertLess(float(self.features['penultimate'].min()), 0)

  def test_training_mode(self):
    self.assert_close(self.logits_train, self.expected['logits_train'])

  def test_running_statistics_after_one_training_pass(self):
    stats = torch_layout.to_torch(self.after.batch_stats)
    self.assertLen(stats, 32)
    for name, value in stats.items():
      self.assert_close(value, self.expected[f'bn_after/{name}'])

  def test_convolution_outputs(self):
    for name in self.expected['conv_names']:
      x = self.features[str(name).replace('layer', 'stage')]
      mean, norm = x.mean((0, 1, 2)), jnp.sqrt((x * x).sum((0, 1, 2)))
      self.assert_close(mean, self.expected[f'conv_mean/{name}'])
      self.assert_close(norm, self.expected[f'conv_l2/{name}'])

  def test_torch_names_cover_all_params(self):
    stored = golden.arrays('preact_w8_state')
    names = [k for k in stored if 'running' not in k and 'num_' not in k]
    ours = torch_layout.to_torch(self.state.params)
    self.assertCountEqual(ours, names)
    self.assertLen(names, 54)
    for name in names:
      path = torch_layout.from_torch_name(name)
      self.assertEqual(torch_layout.to_torch_name(path), name)

  def test_layouts_are_inverse(self):
    again = torch_layout.from_torch(
      torch_layout.to_torch(self.state.params), self.state.params
    )
    self.assertIsNone(tree.describe_mismatch(again, self.state.params))
    self.assertEqual(
      float(tree.norm(tree.subtract(again, self.state.params))), 0
    )
