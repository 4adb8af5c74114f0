"""Channel masks: pruning that never changes a shape.

A mask holds one number per channel of every BatchNorm layer, 1 where the
channel stays and 0 where it is pruned; what lies between scales it. Masks are
arrays, so a sweep over thresholds is a leading axis, pruned models still
stack, and the backdoor existence coefficient still finds its channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bdjax import checks, types

Masks = dict[str, jax.Array]


def norm_names(classifier: types.Classifier) -> tuple[str, ...]:
  """Names of the BatchNorm layers in masks, such as 'stage1_0.bn1'.

  Raises:
    Unsupported: if the network has none, so that channels cannot be masked.
  """
  paths = classifier.info.norm_paths
  if not paths:
    raise checks.Unsupported(
      f"'{classifier.info.arch}' has no BatchNorm layer, whose channels this "
      'method prunes; take another architecture or another defense.'
    )
  return tuple('.'.join(path) for path in paths)


def norm_leaves(classifier: types.Classifier, tree: Any, leaf: str) -> Masks:
  """One leaf of every BatchNorm layer, by name of the layer.

  Args:
    classifier: the network.
    tree: its `params` or `batch_stats`.
    leaf: 'scale' or 'bias'; 'mean' or 'var'.

  Returns:
    {name: [channels]}.
  """
  found = {}
  for name, path in zip(
    norm_names(classifier), classifier.info.norm_paths, strict=True
  ):
    layer = tree
    for key in path:
      layer = layer[key]
    found[name] = layer[leaf]
  return found


def full_masks(classifier: types.Classifier, state: types.ModelState) -> Masks:
  """Masks that leave every channel as it is: ones."""
  scales = norm_leaves(classifier, state.params, 'scale')
  return jax.tree.map(jnp.ones_like, scales)


def apply_channel_mask(
  classifier: types.Classifier,
  state: types.ModelState,
  scale: Mapping[str, jax.Array],
  *,
  bias: Mapping[str, jax.Array] | None = None,
) -> types.ModelState:
  """Multiplies the scales, and with `bias` the biases, of all BatchNorms.

  Args:
    classifier: the network.
    state: its weights.
    scale: factors of γ, see `full_masks`.
    bias: factors of β; None leaves the biases, so that a pruned channel is a
      constant rather than nothing.

  Returns:
    The state with masked norms; running statistics are untouched.

  Raises:
    Unsupported: if the network has no BatchNorm.
  """
  params = state.params
  for name, path in zip(
    norm_names(classifier), classifier.info.norm_paths, strict=True
  ):
    factors = {'scale': scale[name]}
    if bias is not None:
      factors['bias'] = bias[name]
    params = _at(params, path, lambda layer, f=factors: _scaled(layer, f))
  return types.ModelState(params=params, batch_stats=state.batch_stats)


def _scaled(layer, factors):
  return {**layer, **{leaf: layer[leaf] * f for leaf, f in factors.items()}}


def _at(tree: Any, path: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
  """The tree with `change` applied to the subtree at `path`."""
  if not path:
    return change(tree)
  return {**tree, path[0]: _at(tree[path[0]], path[1:], change)}


def keep_above(masks: Masks, threshold: float | jax.Array) -> Masks:
  """Hard masks: 0 where a soft mask is at most the threshold, else 1."""
  return jax.tree.map(lambda m: (m > threshold).astype(m.dtype), masks)


def keep_inliers(
  scores: Mapping[str, jax.Array],
  u: float | jax.Array,
  *,
  side: Literal['above', 'below'] = 'above',
) -> Masks:
  """Hard masks that drop each layer's outliers.

    above: dropped where score > mean + u · std
    below: dropped where score < mean − u · std

  with mean and unbiased std over the channels of the layer.

  Args:
    scores: per layer [channels].
    u: deviations that are tolerated, may be traced.
    side: which tail is suspicious.

  Returns:
    Masks of the scores' names and shapes.

  Raises:
    ValueError: for an unknown side.
  """
  checks.one_of(('above', 'below'), side=side)
  sign = 1 if side == 'above' else -1

  def keep(score):
    spread = jnp.std(score, ddof=1) if score.size > 1 else jnp.zeros(())
    is_outlier = sign * (score - jnp.mean(score)) > u * spread
    return 1 - is_outlier.astype(score.dtype)

  return {name: keep(score) for name, score in scores.items()}


def num_pruned(masks: Mapping[str, jax.Array]) -> jax.Array:
  """Channels that hard masks drop, int32 []."""
  return sum(
    (jnp.sum(m == 0, dtype=jnp.int32) for m in masks.values()),
    start=jnp.zeros((), jnp.int32),
  )
