"""Where the time of a program goes on CPU: python -m tests.benchmarks.profile

Traces calls of compiled programs with `jax.profiler` and adds up what XLA's
operations took by kind, each from its beginning to the end of its last thread;
medians of several calls, since fresh memory makes single ones slow.
Operations that run beside each other count twice, so that the sum may exceed
the wall time. PyTorch, where installed, is traced on the same work by its own
profiler. Results go to tests/benchmarks/results/profile-<device>.json.
"""

import collections
import json
import pathlib
import re
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import app
from jax import profiler

from bdjax import data, eval, models, reactivation, training, types, zoo
from tests.benchmarks import run, step_bench, timing

REPEATS = 7
# In one program; a single step would mostly show what fresh memory costs.
STEPS = 4
_CONTAINERS = ('while', 'call', 'conditional')
_LINE = re.compile(r'\s*(?:ROOT )?%?([\w.-]+) = .*? ([a-z-]+)\(')
_NAME = re.compile(r'op_name="([^"]*)"')
_CONVOLVES = re.compile(r'/(conv\d*|stem|shortcut)/')
_TORCH_KINDS = {
  'mkldnn_convolution': 'convolution',
  'convolution_backward': 'gradients of convolutions',
  'native_batch_norm': 'norm',
  'native_batch_norm_backward': 'norm',
}


def step(torch):
  """A scanned training step of PreAct-ResNet18, width 16, 32×32, batch 128."""
  spec, _, phase, carry = step_bench.make(16, 32)
  images, labels = step_bench.pictures(STEPS * 128)
  feeds = {'train': training.make_feed(images, labels)}
  phases = (phase(num_steps=STEPS, batch_size=128),)
  augment = data.augment_fn(spec)

  def ours(carry):
    return training.run_phases(
      phases, carry, feeds, timing.key(), augment=augment
    )[0]

  theirs = torch and step_bench.torch_steps(
    torch, 16, images, labels, 128, spec
  )
  return ours, (carry,), theirs


def white_box(torch):
  """White-box re-activation of one PreAct-ResNet18, width 16, 16×16."""
  del torch
  classifier = models.make('preactresnet18', data.spec('digits16'), width=16)
  hp = reactivation.WhiteBoxHParams(
    outer_epochs=1, inner_steps=2, batch_size=64, pool_size=128
  )
  phases = reactivation.white_box(classifier, hp).phases
  images, labels = step_bench.pictures(128, 16)
  feeds = {'pool': training.make_feed(images, 0 * labels)}

  def ours(model):
    carry = types.Carry(model=model, extra={})
    return training.run_phases(phases, carry, feeds, timing.key())[0].extra

  return ours, (jax.jit(classifier.init)(timing.key()),), None


def evaluation(torch):
  """C-Acc of one PreAct-ResNet18, width 16, on 512 images of 16×16."""
  spec = data.spec('digits16')
  classifier = models.make('preactresnet18', spec, width=16)
  images, labels = step_bench.pictures(512, 16)

  def ours(model, images, labels):
    return eval.count(classifier, model, images, labels)

  model = jax.jit(classifier.init)(timing.key())
  theirs = torch and _torch_evaluation(torch, spec, images)
  return ours, (model, jnp.asarray(images), jnp.asarray(labels)), theirs


def _torch_evaluation(torch_reference, spec, images):
  import torch

  net = torch_reference.make_net('preactresnet18', spec.num_classes, 16).eval()
  pixels = torch_reference.Pixels(spec)
  x = torch.from_numpy(images)

  def predict():
    with torch.no_grad():
      for part in x.split(128):
        net(pixels.normalize(pixels.from_bytes(part))).argmax(1)

  return predict


# Each, and how often its work is done in a call.
PROGRAMS = {
  'step': (step, STEPS),
  'white_box': (white_box, 1),
  'evaluation': (evaluation, 1),
}


def medians(trace, times: int, *args) -> tuple[dict[str, float], float]:
  """Medians of the sums and wall times that several traces found, per time."""
  found = [trace(*args) for _ in range(REPEATS)]
  walls = statistics.median(wall for _, wall in found) / times
  kinds = {kind for sums, _ in found for kind in sums}
  middle = {
    kind: statistics.median(sums.get(kind, 0.0) for sums, _ in found) / times
    for kind in kinds
  }
  return dict(sorted(middle.items(), key=lambda item: -item[1])), walls


def traced(program, args) -> tuple[dict[str, float], float]:
  """({kind: ms of its operations}, ms of wall time) of one call."""
  jax.block_until_ready(program(*args))
  options = profiler.ProfileOptions()
  options.python_tracer_level = 0
  with tempfile.TemporaryDirectory() as folder:
    with profiler.trace(folder, profiler_options=options):
      began = time.perf_counter()
      jax.block_until_ready(program(*args))
      wall = time.perf_counter() - began
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    events = sorted(
      (event.start_ns, event.start_ns + event.duration_ns, event.name)
      for plane in profiler.ProfileData.from_file(str(path)).planes
      for line in plane.lines
      for event in line.events
    )
  kinds = dict(_kinds(program.as_text()))
  began_at = collections.defaultdict(list)
  found = collections.Counter()
  for start, end, name in events:
    if name in kinds:
      began_at[name].append(start)
    elif began_at[name.removeprefix('end: ')]:
      name = name.removeprefix('end: ')
      found[kinds[name]] += (end - began_at[name].pop(0)) / 1e6
  return dict(found), wall * 1e3


def _kinds(text: str):
  """(operation, kind) of each line of a compiled program."""
  for line in text.splitlines():
    match, named = _LINE.match(line), _NAME.search(line)
    if match and match[2] not in _CONTAINERS:
      yield match[1], _kind(line, match[2], named[1] if named else '')


def _kind(line: str, opcode: str, name: str) -> str:
  is_gradient = 'transpose(' in name
  if '/bn' in name:
    return 'norm'
  if not _CONVOLVES.search(name):
    return 'rest'
  if opcode == 'convolution' or '__ynn' in line:
    return 'input gradients' if is_gradient else 'convolution'
  if opcode == 'dot':
    return 'weight gradients: products' if is_gradient else 'convolution'
  return 'gradients: copies' if is_gradient else 'convolution: copies'


def torch_traced(fn) -> tuple[dict[str, float], float]:
  """The same of a function that calls PyTorch."""
  from torch import profiler as torch_profiler

  fn()
  cpu = [torch_profiler.ProfilerActivity.CPU]
  with torch_profiler.profile(activities=cpu) as trace:
    began = time.perf_counter()
    fn()
    wall = time.perf_counter() - began
  found = collections.Counter()
  for event in trace.key_averages():
    kind = _TORCH_KINDS.get(event.key.removeprefix('aten::'), 'rest')
    found[kind] += event.self_cpu_time_total / 1e3
  return dict(found), wall * 1e3


def main(argv) -> None:
  del argv
  device = jax.devices()[0].device_kind
  if jax.default_backend() != 'cpu':
    raise SystemExit(f'{device}: this reads the names of traces on CPU only.')
  path = run.FOLDER / f'profile-{device}.json'
  found = json.loads(path.read_text()) if path.exists() else {}
  torch = run.reference()
  for name, (make, times) in PROGRAMS.items():
    if not re.fullmatch(run.ONLY.value, name):
      continue
    ours, args, theirs = make(torch)
    program = jax.jit(ours).lower(*args).compile()
    sides = {'ours': medians(traced, times, program, args)}
    if theirs:
      sides['torch'] = medians(torch_traced, times, theirs)
    found[name] = {
      'what': make.__doc__,
      'versions': zoo.environment.versions(),
      'sides': {k: {'ms': ms, 'wall_ms': w} for k, (ms, w) in sides.items()},
    }
    for side, (ms, wall) in sides.items():
      print(f'{name} {side}: {wall:.0f} ms of wall time')
      for kind, value in ms.items():
        print(f'  {value:8.1f} ms  {kind}')
    path.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
