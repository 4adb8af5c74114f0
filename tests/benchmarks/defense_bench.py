"""Defenses: steps in units of plain SGD, classes in one program, stacks."""

import functools

import jax
import jax.numpy as jnp

from bdjax import (
  data,
  defenses,
  models,
  perturb,
  training,
  tree,
  types,
)
from tests.benchmarks import lifted, roofline, step_bench, timing

BUDGETS = (512 * 2**20,)


def steps(repeats: int, torch) -> dict:
  """Seconds of one step of NPD and SAU beside plain fine-tuning.

  Counted in forward and backward passes over one batch, plain tuning is one;
  SAU is 2·5 of the search, images only, and two batches unlearned from; NPD is
  two of the search and two batches, with a gradient of one layer only.
  """
  del torch
  num, batch = 2, 128
  classifier = _classifier()
  carry = types.Carry(model=classifier.init(timing.key()), extra={})
  images, labels = step_bench.pictures(num * batch)
  feeds = {'clean': training.make_feed(images, labels)}
  made = {
    'ours_sgd': defenses.ft(classifier).phases[-1],
    'ours_ft_sam': defenses.ft_sam(classifier).phases[-1],
    'ours_npd': defenses.npd(
      classifier, defenses.NpdHParams(warm_epochs=0)
    ).phases[-1],
    'ours_sau': defenses.sau(classifier).phases[-1],
  }
  sides = {}
  for name, phase in made.items():
    short = phase._replace(num_epochs=0, num_steps=num, batch_size=batch)
    short = short._replace(augment=False)
    run = jax.jit(
      lambda carry, phase=short: training.run_phases(
        (phase,), carry, feeds, timing.key()
      )[0]
    )
    sides[name] = functools.partial(run, carry)
  return {
    'what': f'step of a defense, width 16, 32×32, batch {batch}',
    'unit': 'ms per step',
    'per': num / 1e3,
    'sides': timing.compare(sides, repeats),
  }


def inversion(repeats: int, torch) -> dict:
  """Seconds of one Neural Cleanse step for all ten classes."""
  classifier, hp = _classifier(), perturb.InversionHParams()
  model = classifier.init(timing.key())
  images, _ = step_bench.pictures(64)
  batch = {
    'image': jnp.asarray(images, jnp.float32) / 255,
    'mask': jnp.ones(64, bool),
  }
  lane = perturb.start_lane(classifier.info.image_shape, hp)
  lanes = tree.broadcast(lane, 10)

  def predict(model):
    return lambda images: classifier.apply(model, images)[0]

  def by(chunk):
    return jax.jit(
      lambda model, lanes: perturb.invert_step(
        predict(model), lanes, batch, False, hp, chunk=chunk
      )
    )

  one = jax.jit(
    lambda model, lane, target: perturb.step_lane(
      predict(model), lane, batch, target, False, hp
    )
  )
  one_by_one, together = by(None), by(10)
  targets = [jnp.asarray(t) for t in range(10)]
  sides = {
    'ours_one_program': lambda: one_by_one(model, lanes),
    'ours_together': lambda: together(model, lanes),
    'loop_over_classes': lambda: [one(model, lane, t) for t in targets],
  }
  if torch is not None:
    sides['torch'] = _torch_inversion(torch, images, hp)
  return {
    'what': 'trigger inversion, one step for 10 classes, width 16, batch 64',
    'unit': 'ms',
    'per': 1e-3,
    'sides': timing.compare(sides, repeats),
    # The gradient of the images costs what the forward pass does.
    'flops': 2 * roofline.forward_flops(classifier, 10 * len(images)),
  }


def _torch_inversion(torch_reference, images, hp):
  import torch

  from tests.benchmarks import torch_instruments

  spec = data.spec('cifar10')
  net = torch_reference.make_net('preactresnet18', spec.num_classes, 16)
  pixels = torch_reference.Pixels(spec)
  x = pixels.from_bytes(torch.from_numpy(images))
  lanes = torch_instruments.inversion_lanes(10, x, hp)
  return lambda: torch_instruments.invert_step(net, lanes, x, pixels, hp)


def stack(repeats: int, torch, k: int = 8) -> dict:
  """Seconds of fine-tuning a stack of k models beside k runs."""
  del torch
  classifier = _classifier()
  images, labels = step_bench.pictures(64)
  feeds = {'clean': training.make_feed(images, labels)}
  phases = defenses.ft(
    classifier, defenses.FtHParams(epochs=2, batch_size=32)
  ).phases
  members = [classifier.init(jax.random.key(i)) for i in range(k)]
  stacked = tree.stack(members)

  def run(model):
    carry = types.Carry(model=model, extra={})
    return training.run_phases(phases, carry, feeds, timing.key())[0].model

  single = jax.jit(run)
  sides = {'single_runs': lambda: [single(model) for model in members]}
  sides |= lifted.sides(run, stacked)
  return {
    'what': f'FT of K = {k} models, 4 steps, width 16, 32×32, batch 32',
    'unit': 's',
    'per': 1.0,
    'sides': timing.compare(sides, repeats),
    'chunk_by_budget': lifted.chunk_by_budget(run, stacked, budgets=BUDGETS),
  }


@functools.cache
def _classifier() -> types.Classifier:
  return models.make('preactresnet18', data.spec('cifar10'), width=16)
