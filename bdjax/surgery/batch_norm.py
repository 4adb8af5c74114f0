"""Re-estimation of BatchNorm's running statistics from data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import checks, types


def reestimate_bn(
  classifier: types.Classifier,
  state: types.ModelState,
  batches: jax.Array,
) -> types.ModelState:
  """Replaces the running statistics by those of the given images.

  Weights that were interpolated, pruned or averaged no longer fit the
  statistics they were trained with. Per layer, over the batches:

    mean = average of the batch means
    var  = average of the batch variances + variance of the batch means

  which is the mean and variance of all activations together, each layer
  seeing what the layers before it produce under batch statistics. No
  momentum is involved: the order of the batches does not matter. No labels
  are needed.

  Space:       running statistics; weights are untouched.
  BN:          train-BN, each batch from zeroed statistics, of which an update
               leaves (1 − norm_decay) · batch statistic.
  Guarantees:  - the weights are the same arrays.
               - statistics of the model given have no influence.
               - a model without BatchNorm is returned as it is.
  Divergences: - the batch variances are what the model's own update adds up,
                 the unbiased ones (torch's); with k values per channel and
                 batch the first term of var is k/(k − 1) times the biased
                 one. The variance of the batch means is the plain one.
  Cost:        one forward pass per batch.

  Args:
    classifier: the model; `info.norm_decay` is read.
    state: its weights; the running statistics give the layout only.
    batches: float images in [0, 1], [n, b, h, w, c]; the method's paper
      setting is n = 20, b = 250. Scanned over n.

  Returns:
    The state with new running statistics.

  Raises:
    TypeError: if the images are integers.
    ValueError: if the images are not [n, b, h, w, c] in [0, 1], if
      `info.norm_decay` is 1, or if running statistics other than 'mean' and
      'var' are found.
  """
  if not jax.tree.leaves(state.batch_stats):
    return state
  checks.unit_images(batches=batches)
  _check(classifier.info.norm_decay, batches.shape)
  seen = _batch_statistics(classifier, state, batches)
  return types.ModelState(params=state.params, batch_stats=_pool(seen))


def _check(norm_decay: float, shape: tuple[int, ...]) -> None:
  """Raises where the statistics of a batch could not be read off."""
  if len(shape) != 5 or not shape[0]:
    raise ValueError(
      f'`batches` has shape {shape}; expected [n, b, h, w, c] with n ≥ 1. '
      'Give one batch as images[None].'
    )
  if norm_decay >= 1:
    raise ValueError(
      f'`info.norm_decay={norm_decay}` keeps nothing of a batch; make the '
      'classifier with a decay below 1.'
    )


def _batch_statistics(classifier, state, batches) -> types.PyTree:
  """The statistics of each batch, a leading axis n on every leaf."""
  zeros = jax.tree.map(jnp.zeros_like, state.batch_stats)
  blank = types.ModelState(params=state.params, batch_stats=zeros)
  share = 1 - classifier.info.norm_decay

  def one(carry, images):
    _, after = classifier.apply(blank, images, train=True)
    return carry, jax.tree.map(lambda x: x / share, after.batch_stats)

  return jax.lax.scan(one, None, batches)[1]


def _pool(seen: Any, path: str = 'batch_stats') -> Any:
  """Combines the batches' means and variances, layer by layer."""
  if not isinstance(seen, Mapping):
    raise ValueError(
      f'`{path}` is not a running statistic known here; layers hold '
      "{'mean', 'var'}."
    )
  if set(seen) != {'mean', 'var'}:
    return {name: _pool(part, f'{path}/{name}') for name, part in seen.items()}
  mean, var = seen['mean'], seen['var']
  return {'mean': mean.mean(axis=0), 'var': var.mean(axis=0) + mean.var(axis=0)}
