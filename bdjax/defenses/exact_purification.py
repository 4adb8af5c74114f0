"""Exact purification: unlearns the attacker's own trigger, an upper bound.

With T the true test-time trigger and x̃ a batch x with a fifth of its images
replaced by T(x), under their true labels y:

  min over all parameters of CE(f(x̃), y)

No defender can do this. It tells how far purification gets where the trigger
is known exactly, and so what a method that inverts it can hope for.

1. Draw a batch of the clean set, augmented by the data set's recipe.
2. Stamp ⌊share·b⌋ + 1 of its images with the true trigger.
3. One step of SGD with momentum on all parameters.
4. After the last epoch the weights are kept; there is no selection.

Access:      weights and gradients, and the attacker's trigger; data: 5 % clean
             labelled; stage: post_training
Space:       weights (tuning); pixels (the trigger)
BN:          train-BN on x̃
Guarantees:  - labels stay true, and ⌊share·b⌋ + 1 images are stamped
             - the trigger goes on after augmentation, unshifted as at test time
             - running statistics move once per step, by the mixed batch
             - a learning rate of zero leaves the weights bit-identical
             - without a trigger it is not made
Divergences: - There is no official code, and the paper gives no settings:
             all are those of PAM's unlearning with the usual momentum of 0.9.
             - The short last batch of an epoch wraps round (see FT).
Cost:        one forward/backward pass per step and the trigger on a fifth of
             the batch; memory of plain training

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> dot = lambda images, key, index: images.at[:, 0, 0].set(1.0)
  >>> defense = defenses.exact_purification(classifier, stamp=dot)
  >>> [(phase.name, phase.num_epochs) for phase in defense.phases]
  [('unlearn', 30)]

References:
  The upper bound in Min et al., Uncovering, Explaining, and Mitigating the
  Superficial Safety of Backdoor Defense, NeurIPS 2024.
"""

import dataclasses
from collections.abc import Callable

import jax

from bdjax import checks, optim, training, types


@types.hparams
class ExactPurificationHParams:
  """Hyper-parameters of exact purification; the defaults are for CIFAR-10.

  Attributes:
    epochs: passes over the clean set.
    batch_size: images per step.
    share: of them that carry the trigger, in (0, 1].
    lr: SGD's learning rate, constant.
    momentum: its momentum; there is no decay.
  """

  epochs: int = 30
  batch_size: int = 128
  share: float = dataclasses.field(default=0.2, metadata={'static': True})
  lr: float = 0.01
  momentum: float = 0.9


def exact_purification(
  classifier: types.Classifier,
  hp: ExactPurificationHParams | None = None,
  *,
  stamp: Callable[..., jax.Array] | None = None,
) -> types.Defense:
  """Makes the baseline.

  Args:
    classifier: the network.
    hp: hyper-parameters.
    stamp: the true test-time trigger, (images [k, h, w, c], key, index [k]) ->
      images, such as an attack's `stamp` bound to its state; `index` is that
      of the clean set's feed.

  Returns:
    A defense of one phase, 'unlearn', that reads 'clean'.

  Raises:
    ValueError: without a trigger, for a non-positive count, a negative rate or
      a share outside (0, 1].
  """
  hp = hp or ExactPurificationHParams()
  checks.positive(epochs=hp.epochs, batch_size=hp.batch_size)
  checks.non_negative(lr=hp.lr, momentum=hp.momentum)
  checks.fraction(share=hp.share)
  if stamp is None:
    raise ValueError(
      "'exact_purification' is the upper bound that knows the true trigger, "
      'and was made without one. `launch.defend` hands over that of each '
      'victim; in Python pass `stamp=lambda *x: attack.stamp(state, *x)` with '
      'the attack and its state.'
    )

  def objective(model, extra, batch):
    del extra
    logits, new = classifier.apply(model, batch['mixed'], train=True)
    accuracy = training.accuracy(logits, batch['label'])
    loss = training.cross_entropy(logits, batch['label'])
    return loss, ({'accuracy': accuracy}, new)

  phase = training.tune_mixed(
    lambda extra, images, key, index: stamp(images, key, index),
    objective,
    optim.sgd(optim.constant(hp.lr), momentum=hp.momentum, weight_decay=0.0),
    share=hp.share,
    name='unlearn',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
  )
  return types.Defense(phases=(phase,), info='exact_purification')
