"""Strictness of the whole test run: typed keys, no rank promotion, 4 CPUs."""

import gc
import os
import pathlib

from jaxlib import version

# Tests compile many tiny programs and run each once: LLVM's optimizations cost
# more than they save. Library kernels (convolutions, matmuls) are not affected.
_FLAGS = ['--xla_backend_optimization_level=0']
_FLAGS += ['--xla_cpu_parallel_codegen_split_count=1']
if version.__version_info__ < (0, 11):
  # The older emitters of fused loops compile in less than half the time; later
  # versions do not have them, and end at a flag that they do not know.
  _FLAGS += ['--xla_cpu_use_fusion_emitters=false']
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
# ruff: noqa: E402 (the flag must be set before JAX starts)

import jax
import pytest
from absl import flags

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_legacy_prng_key', 'error')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Grain and TFDS look at absl flags before pytest has parsed any.
flags.FLAGS.mark_as_parsed()


# Every compiled program takes a few; at 65,530 Linux refuses further ones, and
# XLA ends the process. Programs are shared within a file, hardly beyond.
_MANY_MAPS = 30_000


def pytest_runtest_teardown(item, nextitem):
  """Between files, forgets compiled programs where there are too many."""
  if nextitem is None or nextitem.path == item.path:
    return
  maps = pathlib.Path('/proc/self/maps')
  if maps.exists() and maps.read_bytes().count(b'\n') > _MANY_MAPS:
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
  """Skips what this machine cannot run, saying what is missing."""
  no_data = pytest.mark.skip(
    reason='set BDJAX_DATA_DIR to a folder of prepared data sets'
  )
  no_gpu = pytest.mark.skip(reason='no GPU')
  has_gpu = any(d.platform == 'gpu' for d in jax.devices())
  for item in items:
    if item.get_closest_marker('data') and 'BDJAX_DATA_DIR' not in os.environ:
      item.add_marker(no_data)
    if item.get_closest_marker('gpu') and not has_gpu:
      item.add_marker(no_gpu)
