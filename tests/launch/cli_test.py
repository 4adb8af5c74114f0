"""How launchers set the process up."""

import importlib.util
import os
from unittest import mock

from absl.testing import parameterized

from launch import cli

_QUICK = '--xla_backend_optimization_level=1'


class CompileQuicklyTest(parameterized.TestCase):
  def flags_after(self, given, installed=()):
    """XLA's flags where these were given and these plugins are installed."""
    find = lambda name: name if name in installed else None
    with (
      mock.patch.dict(os.environ, {'XLA_FLAGS': given}),
      mock.patch.object(importlib.util, 'find_spec', find),
    ):
      cli._compile_quickly()
      return os.environ['XLA_FLAGS']

  @parameterized.parameters(
    ('', _QUICK),
    ('--xla_foo=2', f'--xla_foo=2 {_QUICK}'),
    ('--xla_backend_optimization_level=3',) * 2,
  )
  def test_on_a_cpu_unless_told_otherwise(self, given, want):
    self.assertEqual(self.flags_after(given), want)

  @parameterized.parameters('jax_plugins', 'libtpu')
  def test_never_beside_an_accelerator(self, plugin):
    self.assertEqual(self.flags_after('', [plugin]), '')
