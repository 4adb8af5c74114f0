"""Who may import whom, read from the source; and that importing is idle."""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap

from absl.testing import parameterized

ROOT = pathlib.Path(__file__).parents[1]

FLOORS = (
  ('types', 'tree', 'keys', 'checks', 'registry', 'xla'),
  ('data', 'models', 'optim', 'perturb', 'surgery'),
  ('training', 'eval', 'analysis', 'connectivity'),
  (
    'attacks',
    'defenses',
    'detection',
    'existence',
    'reactivation',
    'multimodal',
  ),
  ('zoo', 'sweep'),
)
FLOOR_OF = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
TOP = ('launch', 'configs')  # floor 5

# Third-party modules that belong to some places only.
CONFINED = {
  'flax': ('bdjax/models/',),
  'orbax': ('bdjax/zoo/store.py',),
  'ray': ('bdjax/sweep/ray_engine.py',),
  'absl.flags': ('launch/',),
  'absl.app': ('launch/',),
  'absl.logging': ('launch/',),
  'logging': ('launch/', 'bdjax/zoo/store.py'),  # there to silence Orbax
  'rich': ('launch/',),
  'ml_collections': ('launch/', 'configs/'),
  'jax.experimental.shard_map': (),  # it is jax.shard_map
}
GROUND = ('jax', 'numpy', 'jaxtyping', 'chex', 'bdjax', 'absl')
# What only the functions that use it may import, not a room as it is entered.
HEAVY = ('tensorflow_datasets', 'tensorflow', 'sklearn', 'matplotlib', 'torch')


def sources(*folders):
  """Pairs of a path inside the repository and the text of the file."""
  for folder in folders:
    for path in sorted((ROOT / folder).rglob('*.py')):
      yield path.relative_to(ROOT).as_posix(), path.read_text()


def imported(path, text):
  """Dotted names a file imports, at any depth; members count as modules."""
  package = path.split('/')[:-1]
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) + 1 - node.level] if node.level else []
      base = '.'.join([*base, *([node.module] if node.module else [])])
      yield from (f'{base}.{alias.name}' for alias in node.names)


def room_of(name):
  """The room or floor-0 module of a dotted name, None where it is neither."""
  parts = name.split('.')
  return parts[1] if parts[0] == 'bdjax' and len(parts) > 1 else None


def under(name, module):
  return name == module or name.startswith(module + '.')


def confinement(path, name):
  for module, places in CONFINED.items():
    if under(name, module) and not path.startswith(places):
      where = ' and '.join(places) or 'no place'
      yield f'{path} imports {name}; {module} belongs in {where}'


def floor_faults(path, name):
  """Complaints about one import of one file of the package."""
  own = path.removeprefix('bdjax/').removesuffix('.py').split('/')[0]
  if own == '__init__':
    return
  if name.split('.')[0] in (*TOP, 'tests'):
    yield f'{path} imports {name}; nobody imports the top floor'
  floor = FLOOR_OF.get(own)
  if floor is None:
    yield f'{path}: no floor is known for {own}; give it one in FLOORS'
    return
  top = name.split('.')[0]
  if floor == 0 and top not in (*GROUND, *sys.stdlib_module_names):
    yield f'{path} imports {name}; floor 0 stands on {", ".join(GROUND)}'
  other = room_of(name)
  if other not in FLOOR_OF or other == own:
    return
  if FLOOR_OF[other] > floor:
    yield f'{path} (floor {floor}) imports {name} from a floor above'
  if FLOOR_OF[other] == floor and floor > 0:
    yield f'{path} imports {name}, a room of its own floor {floor}'


def faults(path, text):
  """All complaints about one file."""
  found = []
  for name in imported(path, text):
    found += confinement(path, name)
    if path.startswith('bdjax/'):
      found += floor_faults(path, name)
  return found


class FloorsTest(parameterized.TestCase):
  def test_the_house(self):
    found = []
    for path, text in sources('bdjax', *TOP):
      found += faults(path, text)
    self.assertEqual(found, [], '\n'.join(found))

  def test_the_house_is_not_empty(self):
    paths = [path for path, _ in sources('bdjax')]
    self.assertContainsSubset(
      ['bdjax/tree.py', 'bdjax/sweep/over_checkpoints.py'], paths
    )

  @parameterized.parameters(
    ('bdjax/tree.py', 'from bdjax import training', 'from a floor above'),
    ('bdjax/tree.py', 'import optax', 'floor 0 stands on'),
    ('bdjax/data/x.py', 'from bdjax import models', 'its own floor 1'),
    ('bdjax/data/x.py', 'import bdjax.models.conv', 'its own floor 1'),
    ('bdjax/eval/x.py', 'from bdjax.training import y', 'its own floor 2'),
    ('bdjax/eval/x.py', 'from ..training import y', 'its own floor 2'),
    ('bdjax/optim/x.py', 'from .. import zoo', 'from a floor above'),
    ('bdjax/attacks/x.py', 'from bdjax import defenses', 'its own floor 3'),
    ('bdjax/attacks/x.py', 'def f():\n  import bdjax.zoo', 'floor above'),
    ('bdjax/sweep/x.py', 'from bdjax.zoo import store', 'its own floor 4'),
    ('bdjax/zoo/x.py', 'from launch import train', 'nobody imports the top'),
    ('bdjax/zoo/x.py', 'from tests import toy', 'nobody imports the top'),
    ('bdjax/attic/x.py', 'import jax', 'no floor is known for attic'),
    ('bdjax/optim/x.py', 'from flax import linen', 'bdjax/models/'),
    ('bdjax/zoo/x.py', 'import orbax.checkpoint', 'bdjax/zoo/store.py'),
    ('bdjax/zoo/store.py', 'import absl.flags', 'belongs in launch/'),
    ('bdjax/eval/x.py', 'from absl import logging, app', 'absl.app belongs'),
    ('configs/x.py', 'from absl import flags', 'belongs in launch/'),
    ('bdjax/eval/x.py', 'from rich import progress', 'belongs in launch/'),
    ('bdjax/eval/x.py', 'import ml_collections', 'launch/ and configs/'),
    ('bdjax/sweep/x.py', 'import ray', 'bdjax/sweep/ray_engine.py'),
    (
      'bdjax/sweep/x.py',
      'from jax.experimental.shard_map import shard_map',
      'belongs in no place',
    ),
    (
      'launch/x.py',
      'from jax.experimental import shard_map',
      'belongs in no place',
    ),
  )
  def test_faults_are_found(self, path, text, message):
    found = faults(path, text)
    self.assertNotEmpty(found)
    self.assertIn(message, '\n'.join(found))

  @parameterized.parameters(
    ('bdjax/keys.py', 'from bdjax import checks'),
    ('bdjax/__init__.py', '__version__ = "1"'),
    ('bdjax/zoo/cards.py', 'from bdjax import __version__'),
    ('bdjax/eval/x.py', 'from bdjax.eval import y\nfrom bdjax import types'),
    ('bdjax/defenses/x.py', 'from bdjax import optim, training, types'),
    ('bdjax/sweep/x.py', 'from bdjax import reactivation'),
    ('bdjax/sweep/ray_engine.py', 'import ray'),
    ('bdjax/models/x.py', 'from flax import linen as nn'),
    ('bdjax/zoo/store.py', 'import orbax.checkpoint as ocp'),
    ('bdjax/eval/x.py', 'import jax.experimental.sparse\nimport arrayed'),
    ('launch/x.py', 'from absl import app, flags\nfrom bdjax import zoo'),
    ('configs/x.py', 'import ml_collections\nfrom configs import common'),
  )
  def test_what_is_allowed_passes(self, path, text):
    self.assertEqual(faults(path, text), [])


class ImportTest(parameterized.TestCase):
  def test_importing_everything_touches_no_backend(self):
    script = f"""
    import importlib, pkgutil, sys
    import bdjax

    for room in pkgutil.iter_modules(bdjax.__path__, 'bdjax.'):
      importlib.import_module(room.name)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    assert not heavy, f'rooms import {{heavy}} at import time'
    for module in pkgutil.walk_packages(bdjax.__path__, 'bdjax.'):
      importlib.import_module(module.name)
    from jax._src import xla_bridge
    assert xla_bridge._backends == {{}}, 'a backend was initialized'
    """
    done = subprocess.run(
      [sys.executable, '-c', textwrap.dedent(script)],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)


class PathsTest(parameterized.TestCase):
  # Spelt so that this file does not find itself.
  absolute = re.compile(r'(?<![\w.~])/' + '(?:work|root|home|Users)' + r'/')
  suffixes = ('.py', '.sh', '.md', '.toml', '.yaml', '.json', '.html', '')

  def files(self):
    """Text files of the repository, without caches and run directories."""
    folders = ('bdjax', 'configs', 'launch', 'tests', '.ci')
    paths = [p for f in folders for p in (ROOT / f).rglob('*') if p.is_file()]
    paths += [p for p in ROOT.iterdir() if p.is_file()]
    return [p for p in paths if p.suffix in self.suffixes]

  def test_no_file_names_a_path_of_one_machine(self):
    found = [
      f'{path.relative_to(ROOT)}: {line.strip()}'
      for path in self.files()
      for line in path.read_text().splitlines()
      if self.absolute.search(line)
    ]
    self.assertEqual(found, [], '\n'.join(found))

  @parameterized.parameters(('work', True), ('root', True), ('params', False))
  def test_absolute_paths_are_recognized(self, folder, want):
    for before, found in (("'", want), ('cd ', want), ('net', False)):
      line = f'{before}/{folder}/x'
      self.assertEqual(bool(self.absolute.search(line)), found, line)
