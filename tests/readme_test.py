"""What README promises exists."""

import pathlib
import re

from absl.testing import parameterized

from bdjax import attacks, defenses, models, reactivation
from tests.benchmarks import readme

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')


class ReadmeTest(parameterized.TestCase):
  @parameterized.parameters(attacks, defenses, reactivation)
  def test_every_method_has_a_row(self, room):
    for name in room.REGISTRY:
      self.assertIn(f'| `{name}` |', TEXT)

  def test_every_named_path_exists(self):
    for path in re.findall(
      r'(?:configs|launch|tests|bdjax)/[\w/]+\.(?:py|sh|md)', TEXT
    ):
      self.assertTrue((ROOT / path).is_file(), path)

  def test_every_launcher_named_exists(self):
    for name in re.findall(r'python -m (launch\.\w+|tests\.\w+\.\w+)', TEXT):
      path = ROOT / (name.replace('.', '/') + '.py')
      self.assertTrue(path.is_file(), name)

  def test_every_architecture_is_named(self):
    text = re.sub(r'[^a-z0-9]', '', TEXT.lower())
    for name in models.REGISTRY:
      plain = {'wrn28_2': 'wideresnet282', 'resnet50': 'resnet18and50'}
      self.assertIn(plain.get(name, name.replace('_', '')), text)

  def test_tables_of_speed_are_those_of_the_results(self):
    self.assertEqual(readme.filled(TEXT), TEXT)

  def test_a_missing_table_is_named(self):
    with self.assertRaisesRegex(ValueError, "'speed-steps' 0 times"):
      readme.filled(TEXT.replace('speed-steps:begin', ''))
