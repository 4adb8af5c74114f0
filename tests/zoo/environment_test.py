import re
import subprocess

import jax
from absl.testing import parameterized

import bdjax
from bdjax.zoo import environment, records


class EnvironmentTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    environment.code_version.cache_clear()
    environment._versions.cache_clear()
    self.addCleanup(environment.code_version.cache_clear)
    self.addCleanup(environment._versions.cache_clear)

  def test_versions(self):
    found = environment.versions()
    assert found['jax'] == jax.__version__
    for name in ('bdjax', 'flax', 'optax', 'orbax', 'python'):
      assert re.match(r'[0-9a-f]+', found[name]), name

  def test_callers_cannot_change_what_others_see(self):
    environment.versions()['jax'] = 'changed'
    assert environment.versions()['jax'] == jax.__version__

  def test_facts_are_record_fields_without_paths(self):
    found = environment.facts()
    entry = records.record(**found)
    assert entry['device_kind'] == jax.devices()[0].device_kind
    assert not any('/' in str(value) for value in found.values())
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ', found['time_utc'])

  @parameterized.named_parameters(
    ('clean', '', '0123456789ab'),
    ('dirty', ' M x.py', '0123456789ab+dirty'),
  )
  def test_commit(self, status, expected):
    answers = {'rev-parse': '0123456789ab', 'status': status}
    self._patch(environment, '_git', lambda top, command, *_: answers[command])
    self._patch(environment.pathlib.Path, 'exists', lambda path: True)
    assert environment.code_version() == expected

  def test_package_version_outside_of_a_checkout(self):
    self._patch(environment.pathlib.Path, 'exists', lambda path: False)
    assert environment.code_version() == bdjax.__version__

  def test_package_version_without_git(self):
    def missing(*_, **__):
      raise FileNotFoundError('git')

    self._patch(subprocess, 'run', missing)
    assert environment.code_version() == bdjax.__version__

  def _patch(self, owner, name, value):
    self.addCleanup(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
