"""Runs benchmarks: python -m tests.benchmarks.run --suite=cpu

Results go to tests/benchmarks/results/<suite>-<device>.json; `table` turns
them into Markdown. PyTorch, where installed, is timed in turn with us. Each row
has a process of its own: memory that others leave behind slows later ones.
"""

import functools
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import jax
from absl import app, flags

from bdjax import zoo
from tests.benchmarks import (
  attack_bench,
  defense_bench,
  eval_bench,
  instrument_bench,
  roofline,
  step_bench,
  timing,
)

SUITE = flags.DEFINE_enum('suite', 'cpu', ['cpu', 'gpu', 'all'], 'Which.')
ONLY = flags.DEFINE_string('only', '.*', 'Regular expression of whole names.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each side.')
FOLDER = pathlib.Path(__file__).parent / 'results'

_STEP = step_bench.step
_EVAL = eval_bench.evaluation
_BEC = instrument_bench.bec
_WHITE = instrument_bench.white_box
_BLACK = instrument_bench.black_box
_PATHS = instrument_bench.paths
# Without vmap, which takes ten times as long as the others: minutes for a row.
_QUICK = ('map', 'loop', 'shard')
_RESNET, _WIDE = 'preactresnet18', {'dataset': 'cifar10', 'width': 64}
CPU = {
  'step_w16_16': lambda n, t: _STEP(n, t, 16, 16, 64),
  'step_w16_32': lambda n, t: _STEP(n, t, 16, 32, 128),
  'step_w64_32': lambda n, t: _STEP(n, t, 64, 32, 64, steps=4),
  'epoch': step_bench.epoch,
  'epoch_w64': lambda n, t: step_bench.epoch(n, t, width=64),
  'stamping': step_bench.stamping,
  'defense_steps': defense_bench.steps,
  'inversion': defense_bench.inversion,
  'defense_k8': defense_bench.stack,
  'attack_pack_k8': attack_bench.pack,
  'eval_k1': lambda n, t: _EVAL(n, t, _RESNET, 1, 256),
  'eval_k4': lambda n, t: _EVAL(n, t, _RESNET, 4, 256, modes=_QUICK),
  'eval_k16': lambda n, t: _EVAL(n, t, _RESNET, 16, 256, modes=_QUICK),
  'eval_tiny_k1': lambda n, t: _EVAL(n, t, 'tiny', 1, 2048),
  'eval_tiny_k8': lambda n, t: _EVAL(n, t, 'tiny', 8, 2048),
  'eval_tiny_k32': lambda n, t: _EVAL(
    n, t, 'tiny', 32, 2048, budgets=instrument_bench.BUDGETS['tiny']
  ),
  'eval_tiny_k64': lambda n, t: _EVAL(n, t, 'tiny', 64, 2048),
  'eval_16_k8': lambda n, t: _EVAL(
    n,
    t,
    _RESNET,
    8,
    256,
    dataset='digits16',
    budgets=instrument_bench.BUDGETS[_RESNET],
  ),
  'eval_w64_k4': lambda n, t: _EVAL(
    n, t, _RESNET, 4, 128, width=64, modes=('map',)
  ),
  'bec_tiny_k1': lambda n, t: _BEC(n, t, 'tiny', 1),
  'bec_tiny_k8': lambda n, t: _BEC(n, t, 'tiny', 8),
  'bec_tiny_k32': lambda n, t: _BEC(n, t, 'tiny', 32),
  'bec_tiny_k64': lambda n, t: _BEC(n, t, 'tiny', 64),
  'bec_16_k8': lambda n, t: _BEC(n, t, _RESNET, 8),
  'white_box_tiny_k1': lambda n, t: _WHITE(n, t, 'tiny', 1),
  'white_box_tiny_k8': lambda n, t: _WHITE(n, t, 'tiny', 8),
  'white_box_tiny_k32': lambda n, t: _WHITE(n, t, 'tiny', 32),
  'white_box_tiny_k64': lambda n, t: _WHITE(n, t, 'tiny', 64),
  'white_box_16_k8': lambda n, t: _WHITE(n, t, _RESNET, 8, epochs=1, inner=2),
  'white_box_w64_k2': lambda n, t: _WHITE(
    n, t, _RESNET, 2, epochs=1, inner=2, modes=('map',), **_WIDE
  ),
  'black_box_tiny': lambda n, t: _BLACK(n, t, 'tiny', queries=500),
  'black_box_16': lambda n, t: _BLACK(n, t, _RESNET),
  'paths_tiny_k1': lambda n, t: _PATHS(n, t, 'tiny', 1, 3),
  'paths_tiny_k8': lambda n, t: _PATHS(n, t, 'tiny', 8, 3),
  'paths_tiny_k32': lambda n, t: _PATHS(n, t, 'tiny', 32, 3, modes=_QUICK),
}
# Rows on several devices, which a CPU can be told to have.
DEVICES = {'eval_tiny_k8_on4': 4, 'eval_tiny_k32_on4': 4}
CPU |= {
  name: lambda n, t, k=k: _EVAL(n, t, 'tiny', k, 2048, modes=('map', 'shard'))
  for name, k in zip(DEVICES, (8, 32), strict=True)
}
# Whole epochs of a set as large as CIFAR-10's.
_EPOCH = functools.partial(step_bench.epoch, num=50_000, width=64)
GPU = {
  'step_w64_32': lambda n, t: _STEP(n, t, 64, 32, 512),
  'epoch_w64_b128': lambda n, t: _EPOCH(n, t, batch=128),
  'epoch_w64_b512': lambda n, t: _EPOCH(n, t, batch=512),
  'epoch_w64_bf16_b128': lambda n, t: _EPOCH(n, t, batch=128, dtype='bfloat16'),
  'epoch_w64_bf16_b512': lambda n, t: _EPOCH(n, t, batch=512, dtype='bfloat16'),
  'inversion': defense_bench.inversion,
  'eval_k16': lambda n, t: _EVAL(n, t, 'preactresnet18', 16, 10000),
  'eval_tiny_10000_k32': lambda n, t: _EVAL(n, t, 'tiny', 32, 10000),
  'bec_w64_k8': lambda n, t: _BEC(n, t, _RESNET, 8, **_WIDE),
  'bec_w64_k32': lambda n, t: _BEC(n, t, _RESNET, 32, **_WIDE),
  'white_box_w64_k8': lambda n, t: _WHITE(
    n, t, _RESNET, 8, pool=1000, batch=128, **_WIDE
  ),
  'black_box_w64': lambda n, t: _BLACK(
    n, t, _RESNET, queries=500, pool=500, **_WIDE
  ),
  'paths_w64_k8': lambda n, t: _PATHS(
    n, t, _RESNET, 8, 21, num=2000, bn_batches=20, bn_batch_size=250, **_WIDE
  ),
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
  names = [name for name in wanted if re.fullmatch(ONLY.value, name)]
  if not names:
    raise SystemExit(f'--only={ONLY.value} matches none of {sorted(wanted)}')
  if len(names) == 1:
    measure(names[0], wanted[names[0]])
    return
  failed = [name for name in names if _apart(name).returncode]
  if failed:
    raise SystemExit(f'not measured: {", ".join(failed)}')


def _apart(name: str) -> subprocess.CompletedProcess:
  """Measures one row in a process of its own; this one holds no device."""
  command = [sys.executable, '-m', 'tests.benchmarks.run', *sys.argv[1:]]
  return subprocess.run([*command, f'--only={name}'], check=False)


def measure(name: str, bench) -> None:
  """Measures one row here, and writes it beside those of before."""
  if name in DEVICES:
    jax.config.update('jax_num_cpu_devices', DEVICES[name])
  device = re.sub(r'\W+', '-', jax.devices()[0].device_kind).strip('-').lower()
  path = FOLDER / f'{SUITE.value}-{device}.json'
  versions = zoo.environment.versions() | {
    'code': zoo.environment.code_version(),
    'device': jax.devices()[0].device_kind,
    'processor': _processor(),
    'cores': os.cpu_count(),
    'devices': jax.device_count(),
    'torch': _torch_version(),
  }
  row = bench(REPEATS.value, reference())
  row |= {
    'peak_bytes': timing.peak_bytes(),
    'matmul': roofline.matmul_rate(),
    'versions': versions,
  }
  medians = {k: v['median_s'] / row['per'] for k, v in row['sides'].items()}
  print(name, {k: round(v, 2) for k, v in medians.items()}, flush=True)
  found = json.loads(path.read_text()) if path.exists() else {'rows': {}}
  found['rows'][name] = row
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
