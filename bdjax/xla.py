"""Flags of XLA that pay where the CPU is all there is.

Launchers and benchmarks set them; a script of your own calls `tune_cpu` before
its first computation. tests/benchmarks/README.md tells what was measured.
"""

import importlib.util
import os

import jax

_PLUGINS = ('jax_plugins', 'libtpu')
# LLVM's costly passes take a quarter of the compilation and gain nothing that
# could be measured.
_FLAGS = {'--xla_backend_optimization_level': '1'}
# The newer library of kernels takes convolutions of 32 channels and more, and
# whole training steps a quarter longer with it.
_KERNELS = {'--xla_cpu_experimental_ynn_fusion_type': '-individual_convolution'}
_KNOWN_FROM, _KNOWN_BEFORE = (0, 10), (0, 13)


def tune_cpu() -> None:
  """Adds the flags to `XLA_FLAGS`, unless it holds other values of theirs.

  Does nothing beside an accelerator, where some of them would count too. No
  effect once JAX has computed anything.

  Example:
    >>> import os
    >>> from bdjax import xla
    >>> xla.tune_cpu()
    >>> before = os.environ.get('XLA_FLAGS')
    >>> xla.tune_cpu()
    >>> os.environ.get('XLA_FLAGS') == before
    True
  """
  if any(importlib.util.find_spec(name) for name in _PLUGINS):
    return
  flags = dict(_FLAGS)
  # XLA ends the process at a flag that it does not know.
  if _KNOWN_FROM <= jax.__version_info__ < _KNOWN_BEFORE:
    flags |= _KERNELS
  given = os.environ.get('XLA_FLAGS', '')
  missing = [f'{k}={v}' for k, v in flags.items() if k not in given]
  os.environ['XLA_FLAGS'] = ' '.join([*given.split(), *missing])
