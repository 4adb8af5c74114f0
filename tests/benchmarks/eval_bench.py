"""C-Acc, ASR and R-Acc of K checkpoints, in each mode of the sweep."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bdjax import attacks, data, eval, models, tree
from tests.benchmarks import lifted, roofline, step_bench, timing

DATASETS = {'tiny': 'synthetic', 'preactresnet18': 'cifar10'}


def evaluation(
  repeats: int,
  torch,
  arch: str,
  k: int,
  num: int,
  *,
  dataset: str | None = None,
  width: int = 16,
  budgets: tuple[int, ...] = (),
  modes: Sequence[lifted.Mode] = lifted.MODES,
) -> dict:
  """Seconds of evaluating k checkpoints, per mode."""
  spec = data.spec(dataset or DATASETS[arch])
  classifier = models.make(arch, spec, width=width)
  attack = attacks.badnets(spec)
  images, labels = step_bench.pictures(num, spec.image_shape[0])
  labels = labels % spec.num_classes
  state = attack.init(timing.key(), images, labels)
  stack = tree.stack([classifier.init(jax.random.key(i)) for i in range(k)])

  def count(model, images, labels):
    return eval.count(
      classifier,
      model,
      images,
      labels,
      stamp=lambda x, key, index: attack.stamp(state, x, key, index),
      relabel=attack.relabel,
      key=timing.key(),
    )

  images, labels = jnp.asarray(images), jnp.asarray(labels)
  sides = lifted.sides(count, stack, images, labels, modes=modes)
  if torch is not None:
    sides['torch'] = _torch(torch, arch, spec, width, k, images, labels)
  row = {
    'what': f'C-Acc + ASR + R-Acc of K = {k}, {arch} width {width}, '
    f'{num} images of {spec.image_shape[0]}×{spec.image_shape[1]}',
    'unit': 's',
    'per': 1.0,
    'sides': timing.compare(sides, repeats),
    'flops': k * 2 * roofline.forward_flops(classifier, num),
    'temporary_bytes': lifted.temporary_bytes(count, 1, stack, images, labels),
  }
  if budgets:
    row['chunk_by_budget'] = lifted.chunk_by_budget(
      count, stack, images, labels, budgets=budgets
    )
  return row


def _torch(torch_reference, arch, spec, width, k, images, labels):
  import numpy as np
  import torch

  nets = [
    torch_reference.make_net(arch, spec.num_classes, width) for _ in range(k)
  ]
  pixels = torch_reference.Pixels(spec)
  x = torch.from_numpy(np.array(images))
  y = torch.from_numpy(np.array(labels)).long()
  return lambda: [
    torch_reference.evaluate(net, x, y, pixels, 0) for net in nets
  ]
