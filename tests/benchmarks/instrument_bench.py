"""Instruments on K checkpoints: BEC, re-activation, paths between models.

Rows that run over a stack have one side per mode of the sweep, and where K > 1
the memory that a budget leaves. Models are random: what is counted does not
depend on their weights.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import (
  attacks,
  connectivity,
  data,
  eval,
  existence,
  models,
  reactivation,
  training,
  tree,
  types,
)
from tests.benchmarks import lifted, roofline, step_bench, timing

MIB = 2**20
DATASETS = {'tiny': 'synthetic', 'preactresnet18': 'digits16'}
BUDGETS = {
  'tiny': (16 * MIB, 64 * MIB),
  'preactresnet18': (64 * MIB, 128 * MIB),
}


def bec(
  repeats: int,
  torch,
  arch: str,
  k: int,
  *,
  pairs: int = 2200,
  num: int = 500,
  dataset: str | None = None,
  width: int = 16,
  modes=lifted.MODES,
) -> dict:
  """Seconds of layer similarities of k models to a backdoored one.

  Timed on every side: making the reference (TAC over pairs, selection, features
  of the backdoored model) and `num` triggered images through each model. The
  defaults are the numbers of the paper.
  """
  spec, classifier = _network(arch, dataset, width)
  clean, _ = step_bench.pictures(pairs, spec.image_shape[0])
  clean = jnp.asarray(clean)
  triggered = clean.at[:, -3:, -3:].set(255)
  shown = triggered[:num]
  members = _members(classifier, k + 1)
  attacked, stack = members[0], tree.stack(members[1:])
  make = jax.jit(functools.partial(existence.reference, classifier))

  def compare(state, reference, images):
    return existence.similarity(classifier, reference, state, images)

  def measure(run):
    reference = make(attacked, clean, triggered, shown)
    return run(stack, reference, shown)

  sides = {
    name: functools.partial(measure, run)
    for name, run in lifted.in_modes(compare, modes).items()
  }
  if torch is not None:
    arrays = clean, triggered, shown
    sides |= _torch_bec(torch, arch, spec, width, k, *arrays)
  row = _row(
    f'BEC similarities of K = {k}, {num} images, with reference, {pairs} pairs',
    (arch, spec, width),
    timing.compare(sides, repeats),
  )
  # Pairs and images through the backdoored model, images through the others.
  passes = 2 * pairs + (1 + k) * num
  row['flops'] = roofline.forward_flops(classifier, passes)
  reference = make(attacked, clean, triggered, shown)
  return row | _memory(arch, compare, stack, reference, shown)


def _torch_bec(torch_reference, arch, spec, width, k, *arrays):
  import torch

  from tests.benchmarks import torch_instruments

  make = lambda: torch_reference.make_net(arch, spec.num_classes, width).eval()
  attacked, nets = make(), [make() for _ in range(k)]
  pixels = torch_reference.Pixels(spec)
  x, bad, shown = (torch.from_numpy(np.array(v)) for v in arrays)

  def script(nets):
    reference = torch_instruments.bec_reference(attacked, x, bad, shown, pixels)
    return [
      torch_instruments.bec_similarity(net, reference, shown, pixels)
      for net in nets
    ]

  return {
    'torch': lambda: script(nets),
    'torch_reference_each': lambda: [script([net]) for net in nets],
  }


def white_box(
  repeats: int,
  torch,
  arch: str,
  k: int,
  *,
  pool: int = 128,
  batch: int = 64,
  epochs: int = 2,
  inner: int = 5,
  dataset: str | None = None,
  width: int = 16,
  modes=lifted.MODES,
) -> dict:
  """Seconds of the white-box attack on k models."""
  spec, classifier = _network(arch, dataset, width)
  images, _ = step_bench.pictures(pool, spec.image_shape[0])
  hp = reactivation.WhiteBoxHParams(
    outer_epochs=epochs, inner_steps=inner, batch_size=batch, pool_size=pool
  )
  phases = reactivation.white_box(classifier, hp).phases
  feed = training.make_feed(images, np.zeros(pool, np.int32))
  stack = tree.stack(_members(classifier, k))

  def attack(model, feed):
    carry = types.Carry(model=model, extra={})
    carry, metrics = training.run_phases(
      phases, carry, {'pool': feed}, timing.key()
    )
    return carry.extra, metrics

  sides = lifted.sides(attack, stack, feed, modes=modes)
  if torch is not None:
    sides |= _torch_white_box(torch, arch, spec, width, k, images, hp)
  steps = epochs * (pool // batch) * inner
  row = _row(
    f'white-box re-activation of K = {k}, {steps} steps, batch {batch}',
    (arch, spec, width),
    timing.compare(sides, repeats),
  )
  # The gradient of the images costs what the forward pass does.
  row['flops'] = 2 * roofline.forward_flops(classifier, k * steps * batch)
  return row | _memory(arch, attack, stack, feed)


def _torch_white_box(torch_reference, arch, spec, width, k, images, hp):
  import torch

  from tests.benchmarks import torch_instruments

  nets = [
    torch_reference.make_net(arch, spec.num_classes, width) for _ in range(k)
  ]
  pixels = torch_reference.Pixels(spec)
  x = torch.from_numpy(images)
  targets = torch.zeros(len(x), dtype=torch.long)
  return {
    'torch': lambda: [
      torch_instruments.white_box(net, x, targets, pixels, hp) for net in nets
    ]
  }


def black_box(
  repeats: int,
  torch,
  arch: str,
  *,
  queries: int = 100,
  pool: int = 128,
  dataset: str | None = None,
  width: int = 16,
) -> dict:
  """Milliseconds of one query of the square search in L∞, on one model."""
  spec, classifier = _network(arch, dataset, width)
  images, _ = step_bench.pictures(pool, spec.image_shape[0])
  hp = reactivation.BlackBoxHParams(
    num_queries=queries, pool_size=pool, stop_asr=1.0
  )
  phases = reactivation.black_box(classifier, hp).phases
  feed = training.make_feed(images, np.zeros(pool, np.int32))
  (model,) = _members(classifier, 1)

  def search(model, feed):
    carry = types.Carry(model=model, extra={})
    carry, metrics = training.run_phases(
      phases, carry, {'pool': feed}, timing.key()
    )
    return carry.extra, metrics

  run = jax.jit(search)
  sides = {'ours_scanned': lambda: run(model, feed)}
  if torch is not None:
    sides |= _torch_black_box(torch, arch, spec, width, images, hp)
  row = _row(
    f'square search, {queries} queries, pool of {pool}',
    (arch, spec, width),
    timing.compare(sides, repeats),
  )
  flops = roofline.forward_flops(classifier, queries * pool)
  return row | {'unit': 'ms per query', 'per': queries / 1e3, 'flops': flops}


def _torch_black_box(torch_reference, arch, spec, width, images, hp):
  import torch

  from tests.benchmarks import torch_instruments

  net = torch_reference.make_net(arch, spec.num_classes, width)
  pixels = torch_reference.Pixels(spec)
  x = torch.from_numpy(images)
  targets = torch.zeros(len(x), dtype=torch.long)
  return {
    'torch': lambda: torch_instruments.square_search(
      net, x, targets, pixels, hp
    )
  }


def paths(
  repeats: int,
  torch,
  arch: str,
  k: int,
  points: int,
  *,
  num: int = 256,
  bn_batches: int = 2,
  bn_batch_size: int = 64,
  dataset: str | None = None,
  width: int = 16,
  modes=lifted.MODES,
) -> dict:
  """Seconds of k straight paths, each point naive and recalibrated."""
  spec, classifier = _network(arch, dataset, width)
  images, labels = step_bench.pictures(num, spec.image_shape[0])
  labels = labels % spec.num_classes
  held, _ = step_bench.pictures(
    bn_batches * bn_batch_size, spec.image_shape[0], seed=1
  )
  batches = data.to_float(
    jnp.asarray(held.reshape(bn_batches, bn_batch_size, *held.shape[1:]))
  )
  count = _count(spec, images, labels)
  members = _members(classifier, k + 1)
  ends = [(members[0], other) for other in members[1:]]

  def walk(ends, batches, images, labels):
    return connectivity.evaluate_path(
      classifier,
      *ends,
      lambda classifier, state: count(classifier, state, images, labels),
      batches=batches,
      t=connectivity.positions(points),
    )

  stack = tree.stack(ends)
  rest = batches, jnp.asarray(images), jnp.asarray(labels)
  sides = lifted.sides(walk, stack, *rest, modes=modes)
  if torch is not None:
    sides |= _torch_paths(torch, arch, spec, width, k, points, rest)
  row = _row(
    f'paths of K = {k}, {points} points × 2, C-Acc + ASR + R-Acc of {num} '
    'images, '
    f'statistics from {bn_batches} × {bn_batch_size}',
    (arch, spec, width),
    timing.compare(sides, repeats),
  )
  # Clean and stamped, naive and with statistics estimated anew.
  passes = k * points * (4 * num + bn_batches * bn_batch_size)
  row['flops'] = roofline.forward_flops(classifier, passes)
  return row | _memory(arch, walk, stack, *rest)


def _torch_paths(torch_reference, arch, spec, width, k, points, rest):
  import torch

  from tests.benchmarks import torch_instruments

  batches, x, y = (torch.from_numpy(np.array(v)) for v in rest)
  net, start, *others = (
    torch_reference.make_net(arch, spec.num_classes, width)
    for _ in range(k + 2)
  )
  positions = connectivity.positions(points).tolist()
  pixels = torch_reference.Pixels(spec)
  # Channels-last views, as `from_bytes` makes them.
  batches = batches.permute(0, 1, 4, 2, 3)
  return {
    'torch': lambda: [
      torch_instruments.path(
        net, start, end, positions, batches, x, y.long(), pixels
      )
      for end in others
    ]
  }


def _count(spec, images, labels):
  """(classifier, state, images, labels) -> counts under a patch attack."""
  attack = attacks.badnets(spec)
  state = attack.init(timing.key(), images, labels)

  def count(classifier, model, images, labels):
    return eval.count(
      classifier,
      model,
      images,
      labels,
      stamp=lambda x, key, index: attack.stamp(state, x, key, index),
      relabel=attack.relabel,
      key=timing.key(),
    )

  return count


def _network(arch, dataset, width):
  spec = data.spec(dataset or DATASETS[arch])
  return spec, models.make(arch, spec, width=width)


def _members(classifier, k):
  init = jax.jit(classifier.init)
  return [init(jax.random.key(i)) for i in range(k)]


def _row(what, network, sides) -> dict:
  """A row in seconds."""
  arch, spec, width = network
  h, w, _ = spec.image_shape
  what = f'{what}; {arch} width {width}, {h}×{w}'
  return {'what': what, 'unit': 's', 'per': 1.0, 'sides': sides}


def _memory(arch, fn, stack, *rest) -> dict:
  """The row's entries on memory; a single model has no chunks."""
  entries = {'temporary_bytes': lifted.temporary_bytes(fn, 1, stack, *rest)}
  if tree.stack_size(stack) > 1:
    entries['chunk_by_budget'] = lifted.chunk_by_budget(
      fn, stack, *rest, budgets=BUDGETS[arch]
    )
  return entries
