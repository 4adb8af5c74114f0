"""FP: fine-pruning, removes units that sleep on clean images, then fine-tunes.

Units of the last hidden layer that clean images leave dormant are where a
backdoor may live; pruning them alone can be answered by an attacker, so that
fine-tuning follows.

1. Mean activation of every input of the linear head over the clean images.
2. Candidates k = 0, s, 2s, … prune the k least active: their rows of the
   head's kernel (columns of torch's weight) become zero. All of them are
   evaluated from one forward pass, by one matrix product.
3. The last candidate is taken before accuracy on the held-out fifth of the
   clean set first falls by more than `max_drop` of its own value.
4. Fine-tuning of all parameters as in FT, with the mask kept: the head's kernel
   is multiplied by it in the forward pass.

Access:      weights, activations and gradients; data: 5 % clean labelled, a
             fifth of it for the selection; stage: post_training
Space:       weights
BN:          frozen-BN in 1–3, train-BN in 4
Guarantees:  - candidates are nested and the first of them is untouched
             - pruned rows of the head stay exactly zero
             - running statistics move in fine-tuning only
Divergences: - BackdoorBench measures accuracy on the test set; that is
               `selector='oracle'`. It prunes one unit less than it says, and
               fine-tunes the network that violated the bound; we take the last
               candidate within it.
             - The paper prunes channels of the last convolution; where a mean
               over space follows it, as here, inputs of the head are the same.
             - Activations are averaged over the fitting part of the clean set,
               each image once, augmented.
             - Fine-tuning's short last batch wraps round (see FT).
Cost:        one forward pass over the clean set, one over its held-out part,
             then those of FT

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.fp(classifier, defenses.FpHParams(epochs=2))
  >>> [phase.name for phase in defense.phases]
  ['activity', 'select', 'tune']

References:
  Liu et al., Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
  Networks, RAID 2018.  SCLBD/BackdoorBench: defense/fp.py
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from bdjax import checks, surgery, training, types


@types.hparams
class FpHParams(training.RecipeHParams):
  """Hyper-parameters of FP; the defaults are the benchmark's for CIFAR-10.

  Those of `training.RecipeHParams` are fine-tuning's, epochs being passes over
  the clean set, of which the short last batch wraps round.

  Attributes:
    prune_step: share of the units that one candidate prunes more than the one
      before; at least one unit.
    max_drop: relative loss of accuracy that the selection tolerates.
    selector: 'val' | 'oracle', held-out clean images or the clean test set.
  """

  batch_size: int = 256
  prune_step: float = dataclasses.field(default=0.01, metadata={'static': True})
  max_drop: float = 0.1
  selector: training.Selector = 'val'


def fp(
  classifier: types.Classifier, hp: FpHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of the phases 'activity', 'select' and 'tune', that read
    'clean_fit', 'clean_val' and 'clean'. Its extra holds 'activity' and 'mask'
    of the head's inputs [d], 'chosen', the candidate's number, and 'accuracy'
    of all candidates.

  Raises:
    ValueError: for a non-positive count, a step outside (0, 1], a drop outside
      [0, 1], an unknown selector or schedule.
  """
  hp = hp or FpHParams()
  checks.positive(epochs=hp.epochs, batch_size=hp.batch_size)
  checks.fraction(prune_step=hp.prune_step)
  holds_out = hp.selector == 'val'
  units = _num_units(classifier)
  table = prefixes(units, max(math.ceil(hp.prune_step * units), 1))

  def logits(carry, images):
    features = classifier.features(carry.model, images)['penultimate']
    masks = by_activity(carry.extra['activity'], table)
    return sweep_head(features, _head(classifier, carry.model.params), masks)

  def finish(carry, i, accuracy):
    mask = by_activity(carry.extra['activity'], table)[i]
    return training.with_extra(
      carry,
      model=masked_head(classifier, carry.model, mask),
      mask=mask,
      chosen=i,
      accuracy=accuracy,
    )

  select = training.selection(
    logits,
    len(table),
    finish,
    selector=hp.selector,
    oracle='last_within',
    max_drop=hp.max_drop,
    batch_size=hp.batch_size,
  )
  activity = _activity(
    classifier, hp.batch_size, 'clean_fit' if holds_out else 'clean'
  )
  return types.Defense(
    phases=(activity, *select, _tune(classifier, hp)), info='fp'
  )


def prefixes(units: int, step: int) -> jax.Array:
  """Which ranks each candidate keeps: False for the first 0, s, 2s, … of them.

  Args:
    units: number of units d.
    step: s.

  Returns:
    bool [⌈d / s⌉, d]; the last candidate keeps at least one unit.
  """
  counts = jnp.arange(0, units, step)
  return jnp.arange(units)[None] >= counts[:, None]


def by_activity(activity: jax.Array, table: jax.Array) -> jax.Array:
  """Masks [k, d] of units from `prefixes`, the least active pruned first."""
  rank = jnp.argsort(jnp.argsort(activity, stable=True))
  return table[:, rank].astype(activity.dtype)


def sweep_head(
  features: jax.Array, head: types.PyTree, masks: jax.Array
) -> jax.Array:
  """Logits of a linear layer under many masks of its inputs, in one product.

  Args:
    features: [b, d].
    head: a matrix [d, n] and perhaps a bias [n].
    masks: [k, d].

  Returns:
    [k, b, n].
  """
  k, d = masks.shape
  kernels = masks.T[:, :, None] * surgery.head_kernel(head)[:, None]
  logits = (features @ kernels.reshape(d, -1)).reshape(len(features), k, -1)
  logits = jnp.moveaxis(logits, 1, 0)
  for leaf in jax.tree.leaves(head):
    if leaf.ndim == 1:
      logits += leaf[None, None]
  return logits


def masked_head(
  classifier: types.Classifier, model: types.ModelState, mask: jax.Array
) -> types.ModelState:
  """The model whose head does not see the inputs that a mask [d] drops."""
  head, body = surgery.split_head(classifier, model.params)
  head = surgery.scale_kernel(head, mask[:, None])
  params = surgery.join_head(classifier, head, body)
  return types.ModelState(params=params, batch_stats=model.batch_stats)


def _activity(classifier, batch_size, reads) -> types.Phase:
  """Averages the head's inputs over one pass, each image counted once."""

  def init(key, carry):
    del key
    zeros = jnp.zeros(_num_units(classifier))
    return carry, zeros, jnp.zeros((), jnp.int32)

  def step(state, batch, clock):
    del clock
    carry, total, count = state
    features = classifier.features(carry.model, batch['image'])['penultimate']
    total += jnp.sum(features * batch['mask'][:, None], axis=0)
    count += jnp.sum(batch['mask'], dtype=jnp.int32)
    return (carry, total, count), {'mean_activity': jnp.mean(features)}

  def finish(state):
    carry, total, count = state
    return training.with_extra(carry, activity=total / count)

  return types.Phase(
    name='activity',
    init=init,
    step=step,
    finish=finish,
    num_epochs=1,
    grad_passes=0,
    batch_size=batch_size,
    reads=reads,
    augment=True,
    drop_last=False,
  )


def _tune(classifier, hp) -> types.Phase:
  """FT of the model whose head is masked in the forward pass."""

  def objective(model, extra, batch, clock):
    del clock
    masked = masked_head(classifier, model, extra['mask'])
    logits, new = classifier.apply(masked, batch['image'], train=True)
    return training.cross_entropy(logits, batch['label']), (logits, new)

  return training.descent(
    objective,
    training.optimizer(hp),
    name='tune',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='clean',
    augment=True,
    drop_last=False,
  )


def _head(classifier, params) -> types.PyTree:
  """The last linear layer's parameters."""
  return surgery.split_head(classifier, params)[0]


def _num_units(classifier) -> int:
  """Inputs of the head."""
  abstract = jax.eval_shape(classifier.init, jax.random.key(0))
  return surgery.head_kernel(_head(classifier, abstract.params)).shape[0]
