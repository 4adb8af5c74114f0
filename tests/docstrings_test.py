"""Public means documented and annotated, read from the source."""

import ast
import pathlib

from absl.testing import parameterized

ROOT = pathlib.Path(__file__).parents[1]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def public_nodes(body):
  """Public functions and classes of a body, and public methods of classes."""
  for node in body:
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
      continue
    if node.name.startswith('_'):
      continue
    yield node
    if isinstance(node, ast.ClassDef):
      yield from public_nodes(node.body)


def faults(path, text):
  """Complaints about one file."""
  module = ast.parse(text)
  if text.strip() and not ast.get_docstring(module):
    yield f'{path}: the module has no docstring'
  for node in public_nodes(module.body):
    where = f'{path}:{node.lineno} {node.name}'
    if not ast.get_docstring(node):
      yield f'{where} has no docstring'
    if isinstance(node, FUNCTIONS) and node.returns is None:
      yield f'{where} has no annotated return'


class DocstringsTest(parameterized.TestCase):
  def test_the_house(self):
    found = []
    for path in sorted((ROOT / 'bdjax').rglob('*.py')):
      found += faults(path.relative_to(ROOT), path.read_text())
    self.assertEqual(found, [], '\n'.join(found))

  @parameterized.parameters(
    ('x = 1', 'the module has no docstring'),
    ('"""M."""\ndef f() -> int: return 1', 'f has no docstring'),
    ('"""M."""\ndef f():\n  """F."""', 'f has no annotated return'),
    ('"""M."""\nclass A: pass', 'A has no docstring'),
    (
      '"""M."""\nclass A:\n  """A."""\n  def f(self):\n    """F."""',
      'f has no annotated return',
    ),
  )
  def test_faults_are_found(self, text, message):
    self.assertIn(message, '\n'.join(faults('x.py', text)))

  @parameterized.parameters(
    '',
    '"""M."""\ndef _f(): return 1',
    '"""M."""\nclass _A:\n  def f(self): return 1',
    '"""M."""\ndef f() -> int:\n  """F."""\n  def nested(): return 1',
    '"""M."""\nclass A:\n  """A."""\n  def __init__(self): pass',
  )
  def test_private_and_nested_need_neither(self, text):
    self.assertEqual(list(faults('x.py', text)), [])
