"""Measures how many models at a time suit this device, and writes it down.

python -m tests.benchmarks.chunks

Evaluation and fine-tuning steps of K = 8 models, a small network and
PreAct-ResNet18, at 1, 2, 4 and 8 models at a time. The chunk with the least
geometric mean of times goes to bdjax/sweep/chunks.json, from which sweeps take
it; where it is all eight, memory decides.
"""

import functools
import json
import math

import jax
import jax.numpy as jnp
from absl import app, flags

from bdjax import data, eval, models, sweep, training, tree, types, zoo
from bdjax.sweep import chunks
from tests.benchmarks import step_bench, timing

REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls of each chunk.')
K, CHUNKS = 8, (1, 2, 4, 8)
NETS = {'tiny': ('synthetic', 2048), 'preactresnet18': ('digits16', 256)}


def work() -> dict:
  """Name -> (function of a member and data, stack, data)."""
  found = {}
  for arch, (dataset, num) in NETS.items():
    spec = data.spec(dataset)
    net = models.make(arch, spec, width=16)
    images, labels = step_bench.pictures(num, spec.image_shape[0])
    labels = jnp.asarray(labels % spec.num_classes)
    images = jnp.asarray(images)
    stack = tree.stack([net.init(jax.random.key(i)) for i in range(K)])
    batch = images[:64] / 255, labels[:64]
    found |= {
      f'{arch}: evaluation of {num} images': (
        functools.partial(eval.count, net),
        stack,
        (images, labels),
      ),
      f'{arch}: gradient of a batch of 64': (
        functools.partial(_gradient, net),
        stack,
        batch,
      ),
    }
  return found


def _gradient(net, model, images, labels):
  def loss(params):
    here = types.ModelState(params=params, batch_stats=model.batch_stats)
    logits, _ = net.apply(here, images, train=True)
    return training.cross_entropy(logits, labels)

  return jax.grad(loss)(model.params)


def best(measured: dict[str, dict[str, float]]) -> int | None:
  """The chunk of the least geometric mean; None if it is the largest."""
  mean = lambda chunk: math.prod(
    times[str(chunk)] for times in measured.values()
  )
  found = min(CHUNKS, key=mean)
  return None if found == K else found


def main(argv) -> None:
  del argv
  measured = {}
  for name, (fn, stack, given) in work().items():
    sides = {
      str(chunk): functools.partial(
        sweep.lift(fn, types.Exec(chunk=chunk)), stack, *given
      )
      for chunk in CHUNKS
    }
    times = timing.compare(sides, REPEATS.value)
    measured[name] = {side: t['median_s'] for side, t in times.items()}
    print(name, measured[name], flush=True)
  table = json.loads(chunks.TABLE.read_text())
  table[jax.devices()[0].device_kind] = {
    'chunk': best(measured),
    'measured': measured,
    'versions': zoo.environment.versions(),
  }
  chunks.TABLE.write_text(json.dumps(table, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
