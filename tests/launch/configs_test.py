"""Every config builds, resolves and belongs to a method."""

import importlib
import inspect
import re

from absl import flags
from absl.testing import absltest, parameterized
from ml_collections import config_dict

from bdjax import (
  attacks,
  checks,
  data,
  defenses,
  models,
  reactivation,
  registry,
  training,
)
from launch import cli
from tests.launch import toy

_MODULES = toy.config_modules()
_ROOMS = {
  'attacks': attacks.REGISTRY,
  'defenses': defenses.REGISTRY,
  'reactivation': reactivation.REGISTRY,
}
_METHODS = [(room, key) for room, known in _ROOMS.items() for key in known]


def _get_config(module, arg=None):
  return importlib.import_module(module).get_config(arg)


def _options(module) -> list[str]:
  """Names of the options, as the refusal of an unknown one lists them."""
  try:
    _get_config(module, 'zzz=1')
  except registry.UnknownName as error:
    return str(error).split('Known: ')[1].rstrip('.').split(', ')
  raise AssertionError(f'{module} took the option zzz')


def _stages(config):
  """The configs of single launchers in a config, however deep."""
  if 'name' in config or 'train' in config:
    return [config]
  parts = [s for s in config.values() if isinstance(s, config_dict.ConfigDict)]
  return [stage for part in parts for stage in _stages(part)]


class ConfigsTest(parameterized.TestCase):
  def test_all_rooms_have_configs(self):
    rooms = {name.split('.')[1] for name in _MODULES}
    self.assertContainsSubset(
      {'attacks', 'defenses', 'existence', 'reactivation', 'connectivity'},
      rooms,
    )

  @parameterized.parameters(*_MODULES)
  def test_header_says_what_how_and_what_to_expect(self, module):
    header = importlib.import_module(module).__doc__
    names = re.findall(r'^([A-Z][\w-]*): ', header, re.M)
    self.assertContainsSubset({'Command', 'Expected', 'Quick'}, names)
    self.assertTrue({'Paper', 'Setting'} & set(names), names)
    self.assertIn('python -m launch.', header)
    launcher = re.search(r'python -m (launch\.\w+)', header).group(1)
    self.assertTrue(callable(importlib.import_module(launcher).main))

  @parameterized.parameters(*_MODULES)
  def test_header_names_its_own_file(self, module):
    if module == 'configs.quickstart':
      return
    header = importlib.import_module(module).__doc__
    self.assertIn(f'--config={module.replace(".", "/")}.py', header)

  @parameterized.product(module=_MODULES, dataset=sorted(data.REGISTRY))
  def test_builds_for_every_data_set(self, module, dataset):
    config = _get_config(module, f'dataset={dataset}')
    for stage in _stages(config):
      named = stage.data.name if 'data' in stage else stage.dataset
      self.assertEqual(named, dataset)
      self.check_resolves(stage)

  def check_resolves(self, stage):
    """The values make hyper-parameters of the registry's class."""
    if 'method' in stage:
      known = next(k for k in _ROOMS.values() if stage.name in k)
      entry = known[stage.name]
      hp = registry.make_hparams(entry.hparams, stage.method)
      self.assertIsInstance(hp, entry.hparams)
    if 'train' in stage:
      recipe = registry.make_hparams(training.RecipeHParams, stage.train)
      checks.positive(epochs=recipe.epochs, lr=recipe.lr)
    if 'exec' in stage:
      self.assertEqual(cli.execution(stage).mode, 'map')

  @parameterized.parameters(*_MODULES)
  def test_same_argument_same_config(self, module):
    first, second = _get_config(module), _get_config(module)
    self.assertEqual(first.to_dict(), second.to_dict())
    self.assertIsNot(first, second)

  @parameterized.parameters(*_MODULES)
  def test_quick_is_the_toy_world_and_short(self, module):
    for stage in _stages(_get_config(module, 'quick')):
      if 'data' in stage:
        self.assertEqual(stage.data.name, 'synthetic')
        self.assertEqual(stage.arch.name, 'tiny')
        self.assertLessEqual(stage.train.epochs, 20)
      else:
        self.assertEqual(stage.dataset, 'synthetic')

  @parameterized.parameters(*_MODULES)
  def test_what_is_given_wins_over_quick(self, module):
    for stage in _stages(_get_config(module, 'quick,dataset=digits16')):
      named = stage.data.name if 'data' in stage else stage.dataset
      self.assertEqual(named, 'digits16')

  @parameterized.parameters(*_MODULES)
  def test_every_option_is_taken(self, module):
    values = {
      'dataset': 'gtsrb',
      'arch': 'vgg19_bn',
      'clean_ratio': '0.5',
      'quick': 'true',
      'numpy_legacy': 'true',
      'methods': 'ft',
      'attacks': 'blended',
      'of': 'mode',
    }
    before = _get_config(module).to_dict()
    for option in _options(module):
      text = f'{option}={values.get(option, "7")}'
      after = _get_config(module, text).to_dict()
      self.assertNotEqual(before, after, text)

  @parameterized.parameters(*_MODULES)
  def test_unknown_option_gets_a_suggestion(self, module):
    with self.assertRaisesRegex(KeyError, "Did you mean 'dataset'.*Known: "):
      _get_config(module, 'datset=gtsrb')

  def test_option_of_the_wrong_type(self):
    with self.assertRaisesRegex(ValueError, '`epochs=ten`.* of type int'):
      _get_config('configs.training.clean', 'epochs=ten')
    with self.assertRaisesRegex(ValueError, "`quick='maybe'`"):
      _get_config('configs.training.clean', 'quick=maybe')
    with self.assertRaisesRegex(ValueError, '`clean_ratio=all`.*type float'):
      _get_config('configs.defenses.ft', 'clean_ratio=all')

  @parameterized.parameters(*_METHODS)
  def test_every_method_has_a_config_of_its_name(self, room, key):
    config = _get_config(f'configs.{room}.{key}')
    self.assertEqual(config.name, key)
    fields = inspect.signature(_ROOMS[room][key].hparams).parameters
    self.assertSameElements(config.method, fields)

  @parameterized.parameters(*_METHODS)
  def test_cifar_is_the_paper_setting(self, room, key):
    config = _get_config(f'configs.{room}.{key}', 'dataset=cifar10')
    entry = _ROOMS[room][key]
    made = registry.make_hparams(entry.hparams, config.method)
    self.assertEqual(made, entry.hparams())

  @parameterized.parameters(*sorted(models.REGISTRY))
  def test_every_architecture_is_taken(self, arch):
    config = _get_config('configs.attacks.badnets', f'arch={arch},width=4')
    want = {'name': arch, 'width': 4, 'dtype': None}
    self.assertEqual(config.arch.to_dict(), want)

  def test_seed_of_the_quickstart_reaches_every_stage(self):
    for stage in _stages(_get_config('configs.quickstart')):
      self.assertIn('seed', stage)


class OverridesTest(parameterized.TestCase):
  @parameterized.parameters(*_MODULES)
  def test_a_launcher_gets_it_locked(self, module):
    config = toy.parse(f'{module.replace(".", "/")}.py:quick')
    self.assertTrue(config.is_locked)
    for stage in _stages(config):
      self.assertTrue(stage.is_locked)

  def test_typed_from_the_command_line(self):
    config = toy.parse(
      'configs/defenses/ft_sam.py:dataset=gtsrb',
      '--config.method.rho=1',
      '--config.method.epochs=3',
      '--config.exec.chunk=2',
      '--config.exec.mode=vmap',
    )
    self.assertEqual(config.method.rho, 1.0)
    self.assertIsInstance(config.method.rho, float)
    self.assertEqual(config.method.epochs, 3)
    exec = cli.execution(config)
    self.assertEqual((exec.mode, exec.chunk), ('vmap', 2))

  def test_placeholders_take_their_type_only(self):
    file = 'configs/attacks/badnets.py:quick'
    config = toy.parse(file, '--config.train.t_max=5', '--config.arch.width=4')
    self.assertEqual((config.train.t_max, config.arch.width), (5, 4))

  @parameterized.parameters(
    '--config.seed=abc',
    '--config.train.epochs=1.5',
    '--config.train.lr=fast',
    '--config.train.t_max=long',
    '--config.data.num_train=half',
  )
  def test_wrong_type_is_refused(self, override):
    name, _, text = override.partition('=')
    with self.assertRaisesRegex(flags.Error, rf'{name}={text}.*'):
      toy.parse('configs/attacks/badnets.py:quick', override)

  @parameterized.parameters('--config.method.rhoo=1', '--config.zzz=1')
  def test_unknown_key_is_refused(self, override):
    with self.assertRaises((AttributeError, KeyError)):
      toy.parse('configs/defenses/ft_sam.py', override)


if __name__ == '__main__':
  absltest.main()
