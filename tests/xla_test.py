"""Flags of XLA."""

import importlib.util
import os
from unittest import mock

import jax
from absl.testing import parameterized

from bdjax import xla

_QUICK = '--xla_backend_optimization_level=1'
_KERNELS = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'


class TuneCpuTest(parameterized.TestCase):
  def flags_after(self, given, installed=(), jax_version=(0, 10, 2)):
    """XLA's flags where these were given and these plugins are installed."""
    find = lambda name: name if name in installed else None
    with (
      mock.patch.dict(os.environ, {'XLA_FLAGS': given}),
      mock.patch.object(importlib.util, 'find_spec', find),
      mock.patch.object(jax, '__version_info__', jax_version),
    ):
      xla.tune_cpu()
      return os.environ['XLA_FLAGS']

  @parameterized.parameters(
    ('', f'{_QUICK} {_KERNELS}'),
    ('--xla_foo=2', f'--xla_foo=2 {_QUICK} {_KERNELS}'),
    (
      '--xla_backend_optimization_level=3',
      f'--xla_backend_optimization_level=3 {_KERNELS}',
    ),
  )
  def test_on_a_cpu_unless_told_otherwise(self, given, want):
    self.assertEqual(self.flags_after(given), want)

  @parameterized.parameters('jax_plugins', 'libtpu')
  def test_never_beside_an_accelerator(self, plugin):
    self.assertEqual(self.flags_after('', [plugin]), '')

  def test_no_flag_that_a_version_may_not_know(self):
    self.assertEqual(self.flags_after('', jax_version=(0, 13, 0)), _QUICK)
