"""One training step, and one epoch with its data path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import attacks, data, models, training, types
from tests.benchmarks import roofline, timing

SPEC = data.spec('cifar10')


def pictures(num: int, size: int = 32, seed: int = 0):
  """Random bytes: a step costs the same whatever it sees."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8)
  return images, rng.integers(0, 10, num).astype(np.int32)


def make(width: int, size: int, dtype: str = 'float32'):
  """Data, classifier, training phase of one epoch and its start."""
  spec = data.spec('cifar10' if size == 32 else 'digits16')
  classifier = models.make('preactresnet18', spec, width=width, dtype=dtype)
  phase = functools.partial(
    training.supervised,
    classifier,
    training.optimizer(training.RecipeHParams()),
    name='train',
    reads='train',
    augment=True,
  )
  carry = types.Carry(model=classifier.init(timing.key()), extra={})
  return spec, classifier, phase, carry


def step(
  repeats: int, torch, width: int, size: int, batch: int, steps: int = 16
) -> dict:
  """Seconds of one step: ours by the loop and scanned, PyTorch eager.

  Steps enough that what a call costs once hardly shows, as in training.
  """
  spec, classifier, phase, carry = make(width, size)
  images, labels = pictures(batch * steps, size)
  feeds = {'train': training.make_feed(images, labels)}
  made = phase(num_steps=steps, batch_size=batch)
  augment = data.augment_fn(spec)
  run = lambda chunk: jax.jit(
    lambda carry: training.run_phases(
      (made,), carry, feeds, timing.key(), augment=augment, chunk=chunk
    )[0]
  )
  scanned = run(None)
  single = phase(num_steps=1, batch_size=batch)
  one = jax.jit(
    lambda carry: training.run_phases(
      (single,), carry, feeds, timing.key(), augment=augment
    )[0]
  )

  def stepped():
    here = carry
    for _ in range(steps):
      here = one(here)
    return here

  sides = {'ours_scanned': lambda: scanned(carry), 'ours_stepped': stepped}
  if torch is not None:
    sides['torch'] = torch_steps(torch, width, images, labels, batch, spec)
  result = timing.compare(sides, repeats)
  return {
    'what': f'training step, width {width}, {size}×{size}, batch {batch}',
    'unit': 'ms per step',
    'per': steps / 1e3,
    'sides': result,
    # Both gradients of a convolution cost what it does.
    'flops': 3 * roofline.forward_flops(classifier, batch * steps),
  }


def torch_steps(torch_reference, width, images, labels, batch, spec):
  import torch

  net = torch_reference.make_net('preactresnet18', 10, width)
  optimizer = torch_reference.make_optimizer(net)
  pixels = torch_reference.Pixels(spec)
  x, y = torch.from_numpy(images), torch.from_numpy(labels).long()

  def steps():
    return torch_reference.careful_epoch(net, optimizer, x, y, pixels, batch)

  return steps


def epoch(
  repeats: int,
  torch,
  num: int = 1024,
  *,
  width: int = 16,
  batch: int = 128,
  dtype: str = 'float32',
) -> dict:
  """Seconds of one epoch under BadNets 10 %."""
  spec, classifier, _, _ = make(width, 32, dtype)
  attack = attacks.badnets(spec)
  images, labels = pictures(num)
  state = attack.init(timing.key(), images, labels)
  phase = training.implant(
    classifier,
    attack,
    training.optimizer(training.RecipeHParams()),
    augment=data.augment_fn(spec),
    name='implant',
    num_epochs=1,
    batch_size=batch,
    reads='train',
  )
  feeds = {'train': training.make_feed(images, labels)}
  run = jax.jit(
    lambda carry: training.run_phases((phase,), carry, feeds, timing.key())[0]
  )
  carry = types.Carry(model=classifier.init(timing.key()), extra=state)
  sides = {'ours_scanned': lambda: run(carry)}
  if torch is not None:
    sides |= _torch_epochs(torch, images, labels, state, spec, width, batch)
  result = timing.compare(sides, repeats)
  return {
    'what': f'epoch of {num} images with data path, BadNets 10 %, width '
    f'{width}, batch {batch}, {dtype}',
    'unit': 's per epoch',
    'per': 1.0,
    'sides': result,
    'flops': 3 * roofline.forward_flops(classifier, num),
  }


def _torch_epochs(torch_reference, images, labels, state, spec, width, batch):
  import torch

  rows = np.flatnonzero(np.asarray(state.kind))
  images, labels = torch_reference.poison(images, labels, rows, 0)
  make_net = functools.partial(
    torch_reference.make_net, 'preactresnet18', 10, width
  )
  careful = make_net()
  # Benchmarks of the field leave images and weights in torch's own layout.
  common = make_net(memory_format=torch.contiguous_format)
  pixels = torch_reference.Pixels(spec)
  x, y = torch.from_numpy(images), torch.from_numpy(labels).long()
  loader = torch_reference.picture_loader(images, labels, spec, batch, 0)
  optimizers = [torch_reference.make_optimizer(n) for n in (careful, common)]
  return {
    'torch': lambda: torch_reference.careful_epoch(
      careful, optimizers[0], x, y, pixels, batch
    ),
    'torch_pictures': lambda: torch_reference.picture_epoch(
      common, optimizers[1], loader
    ),
  }


def stamping(repeats: int, torch) -> dict:
  """Seconds of making one batch, with and without the trigger."""
  del torch
  attack = attacks.badnets(SPEC)
  images, labels = pictures(2048)
  augment = data.augment_fn(SPEC)
  state = attack.init(timing.key(), images, labels)
  feed, rows = training.make_feed(images, labels), jnp.arange(128)

  def batch(poisoned):
    made = training.fetch(feed, rows, timing.key(), None)
    made = attack.poison(state, made, timing.key()) if poisoned else made
    keys = jax.random.split(timing.key(), 128)
    return augment(made['image'], keys)

  programs = {p: jax.jit(lambda p=p: batch(p)) for p in (False, True)}
  many = lambda fn: [fn() for _ in range(20)]
  sides = {
    'ours_plain': lambda: many(programs[False]),
    'ours_stamped': lambda: many(programs[True]),
  }
  return {
    'what': 'data path: one batch of 128 at 32×32',
    'unit': 'ms per batch',
    'per': 20 / 1e3,
    'sides': timing.compare(sides, repeats),
  }
