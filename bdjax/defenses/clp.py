"""CLP: prunes channels of large Lipschitz bound, without any data.

A channel that a trigger drives answers strongly to small changes of its input.
Per BatchNorm layer and channel k, with the kernel W before it reshaped to one
matrix [channels in, kernel height · kernel width] per output channel,

  σ_k = σ_max(W_k) · |γ_k / √v_k|,    v the running variance

1. σ of all channels of all layers, from the weights alone.
2. Per layer, channels of σ_k > mean(σ) + u·std(σ) get γ = β = 0; std unbiased.

Access:      weights; data: none; stage: post_training
Space:       BN scale and shift
BN:          no forward pass
Guarantees:  - scale and bias of a channel are kept or zero together, all other
               weights are bit-identical
             - running statistics do not move
             - no data are read and no randomness is used
             - in a layer of c channels none is pruned for u ≥ (c − 1)/√c
Divergences: - The paper bounds a channel of a convolution with a norm. Where a
               residual sum feeds the norm, the official code takes the
               convolution before it in module order; so do we
               (`types.PruneGroup.previous`).
             - As in the official code, no eps is added to the variance.
             - u is what published tables sweep with the test set in hand; here
               it is given.
Cost:        one singular value per channel; no forward pass

Example:
  >>> import jax
  >>> from bdjax import data, defenses, models, training, types
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> model = classifier.init(jax.random.key(0))
  >>> carry, _ = training.run_phases(
  ...   defenses.clp(classifier, defenses.ClpHParams(u=10.0)).phases,
  ...   types.Carry(model=model, extra={}), {}, jax.random.key(0),
  ... )
  >>> {name: int(m.sum()) for name, m in carry.extra['masks'].items()}
  {'bn1': 16, 'bn2': 32}

References:
  Zheng et al., Data-free Backdoor Removal Based on Channel Lipschitzness, ECCV
  2022.  rkteddy/channel-Lipschitzness-based-pruning
  SCLBD/BackdoorBench: defense/clp.py
"""

from typing import Any

import jax
import jax.numpy as jnp

from bdjax import checks, surgery, training, types


@types.hparams
class ClpHParams:
  """Hyper-parameters of CLP; the default is the paper's for CIFAR-10.

  Attributes:
    u: standard deviations above its layer's mean that a bound may have.
  """

  u: float = 3.0


def clp(
  classifier: types.Classifier, hp: ClpHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network, with convolutions before its BatchNorms.
    hp: hyper-parameters.

  Returns:
    A defense of one phase without steps, 'prune', that reads nothing. Its
    extra holds the bounds as 'scores' and 'masks'.

  Raises:
    Unsupported: if the network has no BatchNorm, or does not say which
      convolution comes before each.
    ValueError: for a negative u.
  """
  hp = hp or ClpHParams()
  checks.non_negative(u=hp.u)
  _check(classifier)
  phase = training.prune(
    classifier,
    lambda carry: channel_bounds(classifier, carry.model),
    lambda scores: surgery.keep_inliers(scores, hp.u, side='above'),
    zero_bias=True,
  )
  return types.Defense(phases=(phase,), info='clp')


def channel_bounds(
  classifier: types.Classifier, state: types.ModelState
) -> surgery.Masks:
  """σ of every channel of every BatchNorm layer.

  Args:
    classifier: the network.
    state: its weights and running statistics.

  Returns:
    {name of the layer: [channels]}.

  Raises:
    Unsupported: as `clp`.
  """
  _check(classifier)
  scales = surgery.norm_leaves(classifier, state.params, 'scale')
  variances = surgery.norm_leaves(classifier, state.batch_stats, 'var')
  bounds = {}
  for group in classifier.info.prune_graph:
    name = '.'.join(group.norm)
    kernel = _kernel(state.params, group.previous)
    gain = jnp.abs(scales[name] / jnp.sqrt(variances[name]))
    bounds[name] = _largest_singular_values(kernel) * gain
  return bounds


def _check(classifier: types.Classifier) -> None:
  surgery.norm_names(classifier)
  graph = classifier.info.prune_graph
  if not graph or any(group.previous is None for group in graph):
    raise checks.Unsupported(
      f"'{classifier.info.arch}' does not say which convolution comes before "
      'each BatchNorm; give each `types.PruneGroup` its `previous`.'
    )


def _kernel(params: Any, path: Any) -> jax.Array:
  """The kernel [height, width, in, out] of the convolution at a path."""
  for name in path:
    params = params[name]
  return params['kernel']


def _largest_singular_values(kernel: jax.Array) -> jax.Array:
  """Per output channel, of the matrix [in, height · width]."""
  height, width, inputs, outputs = kernel.shape
  matrices = kernel.reshape(height * width, inputs, outputs)
  # The transpose has the same singular values.
  matrices = jnp.moveaxis(matrices, -1, 0)
  return jnp.linalg.svd(matrices, compute_uv=False)[:, 0]
