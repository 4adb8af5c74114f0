import functools
import importlib.util
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import models, registry, types
from bdjax.zoo import torch_files, torch_states
from tests.reference import golden
from tests.zoo import torch_writer as writer

SPEC = types.DataSpec(
  name='toy',
  image_shape=(32, 32, 3),
  num_classes=5,
  mean=(0.5,) * 3,
  std=(0.25,) * 3,
)
WIDTHS = {'preactresnet18': 4, 'vgg19_bn': 2, 'tiny': 8, 'resnet18': 4}


@functools.cache
def _network(arch: str) -> types.Classifier:
  return models.make(arch, SPEC, width=WIDTHS[arch])


@functools.cache
def _model(arch: str) -> types.ModelState:
  """A state of which no two arrays are alike."""
  like = jax.eval_shape(_network(arch).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.uniform(0.1, 1, x.shape), jnp.float32)
  return jax.tree.map(draw, like)


def _arrays(arch: str) -> dict[str, np.ndarray]:
  return torch_states.to_torch(_model(arch), _network(arch))


def _convert(arrays, arch: str = 'preactresnet18'):
  return torch_states.from_torch(arrays, _network(arch))


class GoldenTest(parameterized.TestCase):
  """A checkpoint of public torch code, and the logits it gave there."""

  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.path = tmp_path / 'preact_w8.pt'

  def test_logits_are_torchs(self):
    stored = golden.arrays('preact_w8_state')
    self.assertLen(stored, 102)
    arrays = torch_files.read(writer.save(self.path, writer.tensors(stored)))
    network = golden.network()
    self.assertEqual(
      torch_states.options('preactresnet18', arrays), {'width': 8}
    )
    model, by_position = torch_states.from_torch(arrays, network)
    self.assertFalse(by_position)
    logits, _ = network.apply(
      model, golden.images('preact_w8', dtype=jnp.float32)
    )
    wanted = golden.arrays('preact_w8')['logits_eval']
    np.testing.assert_allclose(logits, wanted, atol=1e-4)

  def test_the_way_back_gives_the_file(self):
    stored = golden.arrays('preact_w8_state')
    network = golden.network()
    model, _ = torch_states.from_torch(stored, network)
    back = torch_states.to_torch(model, network)
    counted = {k: v for k, v in stored.items() if 'num_batches' not in k}
    self.assertSameElements(back, counted)
    for name, value in counted.items():
      np.testing.assert_array_equal(back[name], value, name)


class ConversionTest(parameterized.TestCase):
  @parameterized.parameters(*WIDTHS)
  def test_round_trip(self, arch):
    model, by_position = _convert(_arrays(arch), arch)
    self.assertFalse(by_position)
    chex.assert_trees_all_equal(model, _model(arch))

  def test_names_and_order_are_torchs(self):
    # The layout of the benchmark's network, written out from its description.
    norm = ('weight', 'bias', 'running_mean', 'running_var')
    names = ['conv1.weight']
    for layer in (1, 2, 3, 4):
      for block in (0, 1):
        for i in (1, 2):
          module = f'layer{layer}.{block}'
          names += [f'{module}.bn{i}.{leaf}' for leaf in norm]
          names.append(f'{module}.conv{i}.weight')
        if layer > 1 and block == 0:
          names.append(f'{module}.shortcut.0.weight')
    names += ['linear.weight', 'linear.bias']
    self.assertEqual(list(_arrays('preactresnet18')), names)

  def test_layouts(self):
    model, arrays = _model('tiny'), _arrays('tiny')
    kernel = np.asarray(model.params['conv2']['kernel'])
    self.assertEqual(arrays['conv2.weight'].shape, (16, 8, 3, 3))
    self.assertEqual(arrays['conv2.weight'][4, 3, 2, 1], kernel[2, 1, 3, 4])
    head = np.asarray(model.params['head']['kernel'])
    np.testing.assert_array_equal(arrays['head.weight'], head.T)
    var = model.batch_stats['bn2']['var']
    np.testing.assert_array_equal(arrays['bn2.running_var'], var)
    scale = model.params['bn2']['scale']
    np.testing.assert_array_equal(arrays['bn2.weight'], scale)

  def test_a_flattened_map_changes_its_order(self):
    kernel = np.asarray(_model('vgg19_bn').params['classifier_0']['kernel'])
    weight = _arrays('vgg19_bn')['classifier.0.weight']
    channels = len(kernel) // 49
    for c, i, j, out in ((0, 0, 1, 0), (3, 6, 2, 5), (channels - 1, 0, 6, 7)):
      self.assertEqual(
        weight[out, c * 49 + i * 7 + j], kernel[(i * 7 + j) * channels + c, out]
      )
    # All other linear layers are only transposed.
    other = np.asarray(_model('vgg19_bn').params['classifier_3']['kernel'])
    np.testing.assert_array_equal(
      _arrays('vgg19_bn')['classifier.3.weight'], other.T
    )

  @parameterized.parameters('float16', 'float64', 'bfloat16')
  def test_any_float_becomes_float32(self, dtype):
    arrays = {k: v.astype(jnp.dtype(dtype)) for k, v in _arrays('tiny').items()}
    model, _ = _convert(arrays, 'tiny')
    chex.assert_trees_all_equal_dtypes(model, _model('tiny'))
    chex.assert_trees_all_close(model, _model('tiny'), atol=1e-2)

  def test_prefix_and_counters_are_dropped(self):
    arrays = {f'module.{k}': v for k, v in _arrays('tiny').items()}
    arrays['module.bn1.num_batches_tracked'] = np.int64(7)
    model, by_position = _convert(arrays, 'tiny')
    self.assertFalse(by_position)
    chex.assert_trees_all_equal(model, _model('tiny'))

  def test_order_stands_in_for_names(self):
    # Torchvision calls the same modules differently.
    arrays = {f'net.{i}': v for i, v in enumerate(_arrays('tiny').values())}
    model, by_position = _convert(arrays, 'tiny')
    self.assertTrue(by_position)
    chex.assert_trees_all_equal(model, _model('tiny'))

  def test_names_beat_order(self):
    arrays = dict(reversed(_arrays('tiny').items()))
    model, by_position = _convert(arrays, 'tiny')
    self.assertFalse(by_position)
    chex.assert_trees_all_equal(model, _model('tiny'))


class OptionsTest(parameterized.TestCase):
  def test_width_is_that_of_the_first_convolution(self):
    for arch in ('preactresnet18', 'vgg19_bn', 'tiny'):
      found = torch_states.options(arch, _arrays(arch))
      self.assertEqual(found, {'width': WIDTHS[arch]})

  def test_defaults_are_left_out(self):
    weights = {'conv1.weight': np.zeros((64, 3, 3, 3))}
    self.assertEqual(torch_states.options('preactresnet18', weights), {})

  def test_stem_of_a_resnet(self):
    for size, wanted in ((3, {}), (7, {'stem': 'imagenet'})):
      weights = {'conv1.weight': np.zeros((64, 3, size, size))}
      self.assertEqual(torch_states.options('resnet18', weights), wanted)

  def test_no_convolution(self):
    with self.assertRaisesRegex(ValueError, 'no convolution.*state_dict'):
      torch_states.options('tiny', {'a': np.zeros(3)})

  def test_unknown_architecture(self):
    with self.assertRaisesRegex(registry.UnknownName, "'vgg19_bn'"):
      torch_states.options('vgg19', {})


class RefusalTest(parameterized.TestCase):
  def assert_refused(self, pattern, arrays, error=ValueError):
    with self.assertRaisesRegex(error, pattern):
      _convert(arrays, 'tiny')

  def test_missing_and_unexpected_names(self):
    arrays = _arrays('tiny')
    arrays['bn9.weight'] = arrays.pop('bn1.weight')[:3]
    self.assert_refused(
      "not that of 'tiny': missing bn1.weight; unexpected bn9.weight.*12 "
      'arrays do not fit the 12.*preactresnet18',
      arrays,
    )

  def test_long_lists_are_cut(self):
    self.assert_refused(
      r'missing bn1.bias, .* and 6 more; unexpected nothing', {}
    )

  def test_other_classes(self):
    arrays = _arrays('tiny')
    arrays['head.weight'] = np.zeros((43, 16), np.float32)
    self.assert_refused(
      r'`head.weight` is \(43, 16\) in the file and \(5, 16\) in the network.*'
      'number of classes',
      arrays,
    )

  def test_quantized_weights(self):
    arrays = _arrays('tiny')
    arrays['head.bias'] = np.zeros(5, np.int8)
    self.assert_refused('`head.bias` has dtype int8', arrays, TypeError)

  @parameterized.parameters(-0.1, np.nan)
  def test_variances_that_are_none(self, value):
    arrays = _arrays('tiny')
    arrays['bn2.running_var'] = np.full(16, value, np.float32)
    self.assert_refused("negative or undefined.*torch's order", arrays)


@pytest.mark.skipif(
  importlib.util.find_spec('torch') is None, reason='needs torch'
)
class TorchTest(parameterized.TestCase):
  def test_vgg_gives_torchs_logits(self):
    spec = types.DataSpec(
      name='toy',
      image_shape=(64, 64, 3),  # maps of 2×2, pooled up to 7×7
      num_classes=5,
      mean=(0.5,) * 3,
      std=(0.25,) * 3,
    )
    network = models.make('vgg19_bn', spec, width=2)
    images = np.random.default_rng(1).uniform(size=(2, 64, 64, 3))
    images = images.astype(np.float32)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # torch's own
      import torch

      weights, wanted = _torch_vgg(torch, images)
    model, by_position = torch_states.from_torch(weights, network)
    self.assertFalse(by_position)
    logits, _ = jax.jit(network.apply)(model, images)
    # Untrained networks may answer every image alike; this one does not.
    self.assertGreater(np.ptp(wanted, axis=0).max(), 1e-2)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def _torch_vgg(torch, images):
  """A VGG19-BN of width 2 with torchvision's names, and its logits."""
  torch.manual_seed(0)
  nn, layers, before = torch.nn, [], 3
  for depth, channels in ((2, 2), (2, 4), (4, 8), (4, 16), (4, 16)):
    for _ in range(depth):
      norm = nn.BatchNorm2d(channels, momentum=1.0)
      nn.init.uniform_(norm.weight, 1, 2)
      nn.init.uniform_(norm.bias, -1, 1)
      layers += [nn.Conv2d(before, channels, 3, padding=1), norm, nn.ReLU()]
      before = channels
    layers.append(nn.MaxPool2d(2))
  net = nn.Module()
  net.features = nn.Sequential(*layers)
  net.classifier = nn.Sequential(
    nn.Linear(16 * 49, 128),
    nn.ReLU(),
    nn.Dropout(),
    nn.Linear(128, 128),
    nn.ReLU(),
    nn.Dropout(),
    nn.Linear(128, 5),
  )
  for layer in net.modules():
    if isinstance(layer, nn.Linear):
      nn.init.kaiming_normal_(layer.weight)
  with torch.no_grad():
    x = torch.from_numpy((images - 0.5) / 0.25).permute(0, 3, 1, 2)
    net.features(x)  # so that running statistics are those of these images
    net.eval()
    x = nn.functional.adaptive_avg_pool2d(net.features(x), 7).flatten(1)
    logits = net.classifier(x).numpy()
  state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
  return state, logits
