"""Runs benchmarks: python -m tests.benchmarks.run --suite=cpu

Results go to tests/benchmarks/results/<suite>-<device>.json; `table` turns
them into Markdown. PyTorch, where installed, is timed in turn with us.
"""

import json
import os
import pathlib
import platform
import re

import jax
from absl import app, flags

from bdjax import zoo
from tests.benchmarks import defense_bench, eval_bench, step_bench, timing

SUITE = flags.DEFINE_enum('suite', 'cpu', ['cpu', 'gpu', 'all'], 'Which.')
ONLY = flags.DEFINE_string('only', '', 'Regular expression on names.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each side.')
FOLDER = pathlib.Path(__file__).parent / 'results'

_STEP = step_bench.step
_EVAL = eval_bench.evaluation
CPU = {
  'step_w16_16': lambda n, t: _STEP(n, t, 16, 16, 64),
  'step_w16_32': lambda n, t: _STEP(n, t, 16, 32, 128),
  'step_w64_32': lambda n, t: _STEP(n, t, 64, 32, 64, steps=2),
  'epoch': step_bench.epoch,
  'stamping': step_bench.stamping,
  'defense_steps': defense_bench.steps,
  'inversion': defense_bench.inversion,
  'defense_k8': defense_bench.stack,
  'eval_k1': lambda n, t: _EVAL(n, t, 'preactresnet18', 1, 256),
  'eval_k4': lambda n, t: _EVAL(n, t, 'preactresnet18', 4, 256),
  'eval_k16': lambda n, t: _EVAL(n, t, 'preactresnet18', 16, 256),
  'eval_tiny_k1': lambda n, t: _EVAL(n, t, 'tiny', 1, 2048),
  'eval_tiny_k4': lambda n, t: _EVAL(n, t, 'tiny', 4, 2048),
  'eval_tiny_k16': lambda n, t: _EVAL(n, t, 'tiny', 16, 2048),
}
GPU = {
  'step_w64_32': lambda n, t: _STEP(n, t, 64, 32, 512),
  'eval_k16': lambda n, t: _EVAL(n, t, 'preactresnet18', 16, 10000),
}


def reference():
  """The PyTorch side, None where torch is missing or a GPU is measured."""
  if jax.default_backend() != 'cpu':
    return None
  try:
    from tests.benchmarks import torch_reference
  except ImportError:
    print('torch is missing: pip install "bdjax[bench]" for the references')
    return None
  return torch_reference


def main(argv) -> None:
  del argv
  wanted = {'cpu': CPU, 'gpu': GPU, 'all': CPU | GPU}[SUITE.value]
  device = re.sub(r'\W+', '-', jax.devices()[0].device_kind).strip('-').lower()
  path = FOLDER / f'{SUITE.value}-{device}.json'
  found = json.loads(path.read_text()) if path.exists() else {'rows': {}}
  found['versions'] = zoo.environment.versions() | {
    'code': zoo.environment.code_version(),
    'device': jax.devices()[0].device_kind,
    'processor': _processor(),
    'cores': os.cpu_count(),
    'torch': _torch_version(),
  }
  torch = reference()
  for name, bench in wanted.items():
    if not re.search(ONLY.value, name):
      continue
    row = bench(REPEATS.value, torch)
    row['peak_bytes'] = timing.peak_bytes()
    found['rows'][name] = row
    medians = {k: v['median_s'] / row['per'] for k, v in row['sides'].items()}
    print(name, {k: round(v, 2) for k, v in medians.items()}, flush=True)
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + '\n')


def _processor() -> str:
  """Model of the CPU, as far as the system tells."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    found = re.search(r'^model name\s*:\s*(.+)$', info.read_text(), re.M)
    if found:
      return found[1]
  return platform.processor() or platform.machine()


def _torch_version() -> str | None:
  try:
    import torch
  except ImportError:
    return None
  return torch.__version__


if __name__ == '__main__':
  app.run(main)
