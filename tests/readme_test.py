"""What README promises exists."""

import pathlib
import re

from absl.testing import parameterized

from bdjax import attacks, defenses, models, reactivation

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
