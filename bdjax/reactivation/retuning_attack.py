"""Retuning: a few poisoned images among clean ones bring a backdoor back.

Whoever fine-tunes the defended model does so on a small set of which an
adversary has poisoned a handful. With all parameters θ free,

  min over θ of the mean CE(f_θ(x), y)

over clean images under their labels and poison_num triggered ones under the
attack's target. The backdoor was only hidden if its success rate rises far
above what the same set does to a model that never had one.

1. Draw split_ratio of the training set (`pools.retuning`); its first
   poison_num rows give way to triggered images.
2. In every batch, augment the clean images; leave the triggered ones alone.
3. One step of SGD with momentum on all parameters, at a constant rate.
4. After the last epoch the weights are kept; there is no selection.

Access:      weights and gradients; data: 2 % of the training set, five of its
             images triggered; stage: deployment
Space:       weights
BN:          train-BN
Guarantees:  - only rows from poison_num on are augmented
             - frozen augmentation is the same in every epoch
             - a learning rate of zero leaves the weights bit-identical
             - nothing but the model is left behind
Divergences: - The official code makes its list of images once, so that each
               has one augmentation for all epochs: `frozen_augmentation`.
               Here each epoch draws its own.
             - It keeps an epoch's short last batch; here it wraps round (see
               FT), so that shapes are static.
             - Its triggered images are stored ones of the poisoned training
               set; here the test-time trigger is put on training images, so
               that clean-label attacks need no other source. The two differ
               where an attack poisons by something else than its trigger.
Cost:        one forward/backward pass per step; memory of plain training

Example:
  >>> from bdjax import data, models
  >>> spec = data.spec('synthetic')
  >>> classifier = models.make('tiny', spec)
  >>> hp = RetuningAttackHParams(epochs=2)
  >>> attack = retuning_attack(classifier, hp, data.augment_fn(spec))
  >>> [(phase.name, phase.reads) for phase in attack.phases]
  [('retune', 'pool')]

References:
  Min et al., Uncovering, Explaining, and Mitigating the Superficial Safety of
  Backdoor Defense, NeurIPS 2024.
  AISafety-HKUST/Backdoor_Safety_Tuning: fine_tune/ft_poison.py
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import checks, keys, optim, training, types


@types.hparams
class RetuningAttackHParams:
  """Hyper-parameters of retuning; the defaults are the paper's for CIFAR-10.

  Attributes:
    lr: learning rate, constant.
    momentum: heavy-ball momentum.
    weight_decay: added to the gradient before momentum, on all parameters.
    epochs: passes over the pool.
    batch_size: images per step; a short last batch wraps round.
    poison_num: triggered images, the first rows of the pool.
    split_ratio: images of the pool / training set.
    frozen_augmentation: whether an image looks the same in every epoch.
  """

  lr: float = 0.01
  momentum: float = 0.9
  weight_decay: float = 0.0
  epochs: int = 5
  batch_size: int = 128
  poison_num: int = 5
  split_ratio: float = dataclasses.field(
    default=0.02, metadata={'static': True}
  )
  frozen_augmentation: bool = False


def retuning_attack(
  classifier: types.Classifier,
  hp: RetuningAttackHParams | None = None,
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> types.Reactivation:
  """Makes the attack.

  Args:
    classifier: the defended model as deployed.
    hp: hyper-parameters.
    augment: of clean images, (images [b, h, w, c], keys [b]) -> images; None
      for none.

  Returns:
    A re-activation of one phase, 'retune', that reads 'pool', as made by
    `pools.retuning`. It changes the model and has no trigger of its own; the
    extra it leaves is {}. Metrics per step: loss and accuracy before it.

  Raises:
    ValueError: for a non-positive count, a negative rate or number of poisoned
      images, or a ratio outside (0, 1].
  """
  hp = hp or RetuningAttackHParams()
  _validate(hp)

  def prepare(key, model, batch, clock):
    """Augments; `key` is the extra of the phase, one for all its steps."""
    del model
    if augment is None:
      return key, batch
    now = key if hp.frozen_augmentation else clock.key
    own = keys.per_example(keys.stream(now, 'augment'), batch['index'])
    is_poisoned = (batch['index'] < hp.poison_num)[:, None, None, None]
    plain = batch['image']
    image = jnp.where(is_poisoned, plain, augment(plain, own))
    return key, {**batch, 'image': image}

  phase = training.supervised(
    classifier,
    optim.sgd(
      optim.constant(hp.lr),
      momentum=hp.momentum,
      weight_decay=hp.weight_decay,
    ),
    prepare=prepare,
    name='retune',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='pool',
    augment=False,
    drop_last=False,
  )
  return types.Reactivation(
    phases=(_with_key(phase),), trigger=None, info='retuning_attack'
  )


def _with_key(phase: types.Phase) -> types.Phase:
  """The phase with a key as its extra, which it does not hand on."""

  def init(key, carry):
    own = keys.stream(key, 'frozen')
    return phase.init(key, types.Carry(model=carry.model, extra=own))

  def finish(state):
    return types.Carry(model=phase.finish(state).model, extra={})

  return phase._replace(init=init, finish=finish)


def _validate(hp: RetuningAttackHParams) -> None:
  """Refuses what cannot be meant; traced floats pass."""
  checks.positive(epochs=hp.epochs, batch_size=hp.batch_size)
  checks.non_negative(
    lr=hp.lr,
    momentum=hp.momentum,
    weight_decay=hp.weight_decay,
    poison_num=hp.poison_num,
  )
  checks.fraction(split_ratio=hp.split_ratio)
