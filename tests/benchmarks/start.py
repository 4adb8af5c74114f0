"""What the quickstart costs to start: python -m tests.benchmarks.start

Runs the quickstart twice in processes of their own, with an empty folder of
compiled programs and with the one that the first has filled, and adds up what
JAX reports: tracing, lowering, compiling or reading back what was compiled.
Results go to tests/benchmarks/results/start-<device>.json.
"""

import collections
import json
import subprocess
import sys
import tempfile
import time

import jax
from jax import monitoring

from bdjax import zoo
from launch import cli, quickstart
from tests.benchmarks import table

# Events of JAX; it counts reading back as compiling.
_EVENTS = {
  '/jax/core/compile/jaxpr_trace_duration': 'trace_s',
  '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lower_s',
  '/jax/core/compile/backend_compile_duration': 'compile_or_read_s',
}


def once(cache: str) -> dict[str, float]:
  """Seconds by event, and of the whole run, in a process of its own."""
  command = [sys.executable, '-m', 'tests.benchmarks.start']
  with tempfile.TemporaryDirectory() as workdir:
    command += [f'--workdir={workdir}', f'--compilation_cache={cache}']
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    whole = time.monotonic() - began
  return json.loads(done.stdout.splitlines()[-1]) | {'whole_s': whole}


def listened() -> None:
  """The quickstart; the sums are the last line of the output."""
  found = collections.Counter()

  def listen(event, seconds, **_):
    if event in _EVENTS:
      found[_EVENTS[event]] += seconds
      found['programs'] += event.endswith('backend_compile_duration')

  monitoring.register_event_duration_secs_listener(listen)
  try:
    cli.run(quickstart.main, 'configs/quickstart.py')
  finally:
    print('\n' + json.dumps(found))


def main() -> None:
  with tempfile.TemporaryDirectory() as cache:
    found = {name: once(cache) for name in ('first', 'second')}
  device = jax.devices()[0].device_kind
  found['versions'] = zoo.environment.versions()
  print(json.dumps(found, indent=1))
  path = table.FOLDER / f'start-{device}.json'
  path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  listened() if '--workdir' in ''.join(sys.argv[1:]) else main()
