"""BNP: prunes channels that clean images drive unlike the training set did.

Running statistics were gathered on the poisoned training set, where the trigger
shifts the inputs of some BatchNorm channels. On clean images these channels
look different. Per channel, with μ₁, v₁ of a clean batch and μ₂, v₂ stored,

  KL = ½ log(v₂/v₁) + (v₁ + (μ₁ − μ₂)²) / (2 v₂) − ½

1. One forward pass of the unpruned model on a batch of clean images; mean and
   variance of the inputs of all norms.
2. Per layer, channels of KL > mean(KL) + u·std(KL) get γ = β = 0; std unbiased.

Access:      weights and activations; data: one batch, clean, labels unused;
             stage: post_training
Space:       BN scale and shift
BN:          frozen-BN
Guarantees:  - scale and bias of a channel are kept or zero together, all other
               weights are bit-identical
             - running statistics do not move
             - equal statistics prune nothing
Divergences: - BackdoorBench overwrites the clean statistics by those of a
               poisoned batch, and its sweep ignores u; here the batch is clean.
             - It leaves out the ½ of the logarithm; here it is kept.
             - Both variances get the 1e-5 that norms add, so that a channel
               that is constant stays finite.
             - u is what published tables sweep with the test set in hand; here
               it is given.
Cost:        one forward pass

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.bnp(classifier, defenses.BnpHParams(u=2.0))
  >>> [(phase.name, phase.num_steps) for phase in defense.phases]
  [('score', 1), ('prune', 0)]

References:
  Zheng et al., Pre-activation Distributions Expose Backdoor Neurons, NeurIPS
  2022.  SCLBD/BackdoorBench: defense/bnp.py
"""

import jax
import jax.numpy as jnp

from bdjax import checks, surgery, training, types

_EPS = 1e-5  # what norms add to a variance


@types.hparams
class BnpHParams:
  """Hyper-parameters of BNP; the defaults are the paper's for CIFAR-10.

  Attributes:
    u: standard deviations above its layer's mean that a divergence may have.
    batch_size: clean images; all of them where there are fewer.
  """

  u: float = 3.0
  batch_size: int = 256


def bnp(
  classifier: types.Classifier, hp: BnpHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network, with BatchNorm.
    hp: hyper-parameters.

  Returns:
    A defense of the phases 'score', one step that reads 'clean', and 'prune'.
    Its extra holds the divergences as 'scores' and 'masks'.

  Raises:
    Unsupported: if the network has no BatchNorm, or does not name its taps.
    ValueError: for a negative u or a non-positive batch size.
  """
  hp = hp or BnpHParams()
  checks.non_negative(u=hp.u)
  checks.positive(batch_size=hp.batch_size)
  surgery.check_norm_taps(classifier)
  score = training.score(
    classifier,
    lambda model, images: divergences(classifier, model, images),
    reads='clean',
    batch_size=hp.batch_size,
  )
  prune = training.prune(
    classifier,
    lambda carry: carry.extra['scores'],
    lambda scores: surgery.keep_inliers(scores, hp.u, side='above'),
    zero_bias=True,
  )
  return types.Defense(phases=(score, prune), info='bnp')


def divergences(
  classifier: types.Classifier, state: types.ModelState, images: jax.Array
) -> surgery.Masks:
  """KL of every channel's inputs on images from its running statistics.

  Args:
    classifier: the network.
    state: its weights and running statistics.
    images: float in [0, 1], [b, h, w, c].

  Returns:
    {name of the layer: [channels]}.
  """
  means = surgery.norm_leaves(classifier, state.batch_stats, 'mean')
  variances = surgery.norm_leaves(classifier, state.batch_stats, 'var')
  found = {}
  for name, x in surgery.norm_inputs(classifier, state, images).items():
    x = x.reshape(-1, x.shape[-1])
    # Unbiased, as running variances are.
    var = jnp.var(x, axis=0, ddof=1)
    mean = jnp.mean(x, axis=0)
    found[name] = gaussian_kl(mean, var, means[name], variances[name])
  return found


def gaussian_kl(
  mean: jax.Array, var: jax.Array, other_mean: jax.Array, other_var: jax.Array
) -> jax.Array:
  """KL(N(mean, var) ‖ N(other_mean, other_var)), with 1e-5 on variances."""
  var, other_var = var + _EPS, other_var + _EPS
  ratio = (var + (mean - other_mean) ** 2) / other_var
  return 0.5 * (jnp.log(other_var / var) + ratio - 1)
