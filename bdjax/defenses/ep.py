"""EP: prunes channels whose answers to poisoned training images are bimodal.

On a batch that holds a few triggered images, a channel that detects the trigger
has two modes, far apart. Standardized, most of its mass falls into few bins:
its entropy is low.

1. One forward pass of the model on a batch of the training set as the attacker
   left it; the inputs of all norms, of each the maximum over space.
2. Every channel is standardized over the batch (unbiased std) and binned, bins
   of width 0.1 counted from its layer's minimum.
3. Entropy H = −Σ p log p, p the share of the batch in a bin.
4. Per layer, channels of H < mean(H) − u·std(H) get γ = β = 0; std unbiased.

Access:      weights and activations; data: one batch of the poisoned training
             set, labels unused; stage: post_training
Space:       BN scale and shift
BN:          frozen-BN
Guarantees:  - scale and bias of a channel are kept or zero together, all other
               weights are bit-identical
             - running statistics do not move
             - entropies lie between 0 and log of the batch size
Divergences: - The official histogram drops what falls on edges of bins or above
               the last whole bin; here bins are half open and all are there.
             - A channel that is constant over the batch has entropy 0; its
               standard scores are 0/0 in the official code.
             - u is what published tables sweep with the test set in hand; here
               it is given.
             - Published tables call it 'dde'.
Cost:        one forward pass and b² comparisons per channel

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.ep(classifier, defenses.EpHParams(u=2.0))
  >>> [(phase.name, phase.reads) for phase in defense.phases]
  [('score', 'train'), ('prune', 'none')]

References:
  Zheng et al., Pre-activation Distributions Expose Backdoor Neurons, NeurIPS
  2022.  SCLBD/BackdoorBench: defense/ep.py
"""

import jax
import jax.numpy as jnp

from bdjax import checks, surgery, training, types


@types.hparams
class EpHParams:
  """Hyper-parameters of EP; the defaults are the paper's for CIFAR-10.

  Attributes:
    u: standard deviations below its layer's mean that an entropy may have.
    bin_width: in standard deviations of a channel.
    batch_size: training images; all of them where there are fewer.
  """

  u: float = 3.0
  bin_width: float = 0.1
  batch_size: int = 256


def ep(
  classifier: types.Classifier, hp: EpHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network, with BatchNorm.
    hp: hyper-parameters.

  Returns:
    A defense of the phases 'score', one step that reads 'train', and 'prune'.
    Its extra holds the entropies as 'scores' and 'masks'.

  Raises:
    Unsupported: if the network has no BatchNorm, or does not name its taps.
    ValueError: for a negative u, a non-positive width or batch size.
  """
  hp = hp or EpHParams()
  checks.non_negative(u=hp.u)
  checks.positive(bin_width=hp.bin_width, batch_size=hp.batch_size)
  surgery.check_norm_taps(classifier)

  def scores_of(model, images):
    inputs = surgery.norm_inputs(classifier, model, images)
    return {
      name: entropies(_spatial_maximum(x), hp.bin_width)
      for name, x in inputs.items()
    }

  score = training.score(
    classifier, scores_of, reads='train', batch_size=hp.batch_size
  )
  prune = training.prune(
    classifier,
    lambda carry: carry.extra['scores'],
    lambda scores: surgery.keep_inliers(scores, hp.u, side='below'),
    zero_bias=True,
  )
  return types.Defense(phases=(score, prune), info='ep')


def entropies(values: jax.Array, bin_width: float | jax.Array) -> jax.Array:
  """Entropy of every channel's standardized values, in nats.

  Args:
    values: [b, channels].
    bin_width: in standard deviations; bins begin at the least value of all
      channels together.

  Returns:
    [channels], in [0, log b].
  """
  spread = jnp.std(values, axis=0, ddof=1, keepdims=True)
  is_flat = spread <= 0
  z = (values - jnp.mean(values, axis=0, keepdims=True)) / jnp.where(
    is_flat, 1, spread
  )
  z = jnp.where(is_flat, 0, z)
  bins = jnp.floor((z - jnp.min(z)) / bin_width).T
  # −Σ_bins p log p = −mean over the batch of log p(own bin): no bin is counted
  # that is empty, however many there are.
  together = jnp.sum(bins[:, :, None] == bins[:, None, :], axis=2)
  return -jnp.mean(jnp.log(together / len(values)), axis=1)


def _spatial_maximum(x: jax.Array) -> jax.Array:
  """[b, ..., channels] -> [b, channels]."""
  return jnp.max(x.reshape(len(x), -1, x.shape[-1]), axis=1)
