"""Data parallelism: every batch of a single model, spread over devices.

The program stays the same. Batches are declared to be split along their
examples, all else to be whole on every device, and XLA puts in the sums over
devices: of gradients, and of BatchNorm's moments, which stay those of the whole
batch. Results agree with a single device's up to the order of sums.
"""

from collections.abc import Mapping, Sequence

import jax

from bdjax import types
from bdjax.training import feed as feeding
from bdjax.training import plan as planning

AXIS = 'batch'  # name of the mesh axis


def mesh_of(
  devices: Sequence[jax.Device] | None,
  phases: Sequence[types.Phase],
  feeds: Mapping[str, feeding.Feed],
) -> jax.sharding.Mesh | None:
  """The mesh of some devices; None where there is nothing to spread.

  Args:
    devices: where to run; None or one = no mesh.
    phases: those whose batches are spread.
    feeds: what they read.

  Returns:
    A mesh with the single axis `AXIS`, or None.

  Raises:
    ValueError: if the devices cannot share a phase's batches evenly.
  """
  if devices is None or len(devices) < 2:
    return None
  for phase in phases:
    feed = planning.feed_of(phase, feeds)
    if feed is None:
      continue
    size = feeding.batch_size(phase, feed.index.shape[-1])
    if size % len(devices):
      raise ValueError(
        f'`devices`: {len(devices)} of them cannot share {size} examples, a '
        f"batch of phase '{phase.name}', evenly; use a batch size that is a "
        'multiple, or fewer devices.'
      )
  return jax.make_mesh(
    (len(devices),),
    (AXIS,),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=devices,
  )


def place(mesh: jax.sharding.Mesh | None, tree: types.PyTree) -> types.PyTree:
  """The tree, whole on every device of the mesh."""
  if mesh is None:
    return tree
  return jax.device_put(tree, jax.NamedSharding(mesh, jax.P()))


def split(mesh: jax.sharding.Mesh | None, tree: types.PyTree) -> types.PyTree:
  """Declares, in a program, leaves [b, …] to be split along b."""
  return _constrained(mesh, tree, jax.P(AXIS))


def whole(mesh: jax.sharding.Mesh | None, tree: types.PyTree) -> types.PyTree:
  """Declares, in a program, all leaves to be whole on every device."""
  return _constrained(mesh, tree, jax.P())


def _constrained(mesh, tree, spec):
  if mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, jax.NamedSharding(mesh, spec))
