"""A phase that re-estimates BatchNorm's running statistics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import surgery, types


class Recalibration(NamedTuple):
  """State of the phase.

  Attributes:
    carry: what it came with.
    count: int32 [], batches so far.
    mean: average over them of their statistics.
    spread: summed squared deviations from it.
  """

  carry: types.Carry
  count: jax.Array
  mean: types.PyTree
  spread: types.PyTree


def recalibration(classifier: types.Classifier, **length: Any) -> types.Phase:
  """`surgery.reestimate_bn` on one pass over what the phase reads.

  BN: train-BN, each batch from zeroed statistics; weights are untouched.

  Args:
    classifier: the network.
    **length: name, batch_size and reads of the `Phase`.

  Returns:
    A phase of one epoch; its metric counts `batches`.
  """

  def init(key, carry):
    del key
    zeros = jax.tree.map(jnp.zeros_like, carry.model.batch_stats)
    return Recalibration(carry, jnp.zeros((), jnp.int32), zeros, zeros)

  def step(state, batch, clock):
    del clock
    model, count = state.carry.model, state.count + 1
    images = batch['image'][None]
    seen = surgery.reestimate_bn(classifier, model, images).batch_stats
    mean = jax.tree.map(lambda m, x: m + (x - m) / count, state.mean, seen)
    spread = jax.tree.map(
      lambda s, x, old, new: s + (x - old) * (x - new),
      state.spread,
      seen,
      state.mean,
      mean,
    )
    return Recalibration(state.carry, count, mean, spread), {'batches': count}

  def finish(state):
    stats = _pooled(state.mean, state.spread, state.count)
    model = types.ModelState(params=state.carry.model.params, batch_stats=stats)
    return types.Carry(model=model, extra=state.carry.extra)

  return types.Phase(
    init=init,
    step=step,
    finish=finish,
    num_epochs=1,
    drop_last=False,
    grad_passes=0,
    **length,
  )


def _pooled(mean: Any, spread: Any, count: jax.Array) -> Any:
  """Average variance plus variance of the averages, layer by layer."""
  if set(mean) == {'mean', 'var'}:
    return {'mean': mean['mean'], 'var': mean['var'] + spread['mean'] / count}
  return {k: _pooled(mean[k], spread[k], count) for k in mean}
