"""BTI-DBF (U): inverts the trigger by a generator, then unlearns it.

With φ the last feature map, m the mask of its benign features and G a U-Net
that moves the others (objectives: `training.inversion`), unlearning minimizes

  CE(f(x̃), y) + MSE(φ(x), φ(x̃))

where x̃ is the batch x with a fifth of its images replaced by G(x), under their
true labels.

1. 'pretrain': teach the generator to be an identity.
2. 'mask1': on a scratch copy, find the features that tell the classes.
3. 'attack1': let the generator move the others, within bounds.
4. 'target1': let generated images vote on the attacker's class t̂.
5. 'unlearn1': tune all parameters on the mixed batches.
6. Repeat 2, 3 and 5; the generator now also leads to t̂.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       weights (unlearning); pixels through a U-Net (the trigger)
BN:          frozen-BN in pretrain and target; train-BN on the scratch copy of
             mask, on which attack runs frozen-BN; unlearn train-BN on x̃ and
             batch-BN/no-update on x
Guarantees:  - only unlearning changes the model
             - statistics of the scratch copy are thrown away
             - labels stay true, and ⌊share·b⌋ + 1 images are replaced
             - the vote is taken in the first round alone; the others lead to it
Divergences: - Generated images are not clipped to [0, 1], as in the reference.
             - In the reference both passes of an unlearning step move running
               statistics; here the one on x̃ does.
             - Bounds and MSEs of images are in normalized units, as its loaders
               normalize.
             - The generator starts afresh for every model, the mask for every
               round; both Adams of the rounds go on from round to round.
             - U-Nets are shallower on images below 32×32 (see `models.unet`).
             - The stop on another vote, off in the release, is left out.
             - The short last batch of an epoch wraps round (see FT).
Cost:        per step two forward passes and one backward, and the U-Net's
             (pretrain, attack); one forward (mask, target); two of each and a
             fifth of the U-Net's forward (unlearn); memory of two models and
             the U-Net (7.8 million weights at width 32) with its moments

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> hp = defenses.BtiDbfHParams(rounds=1)
  >>> [phase.name for phase in defenses.bti_dbf(classifier, hp).phases]
  ['pretrain', 'mask1', 'attack1', 'target1', 'unlearn1']

References:
  Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via
  Decoupling Benign Features, ICLR 2024.
  AISafety-HKUST/stable_backdoor_purification: fine_tune/BTIDBF/btidbfu.py
"""

import jax.numpy as jnp

from bdjax import checks, optim, training, types


@types.hparams
class BtiDbfHParams(training.GeneratorHParams):
  """Hyper-parameters of BTI-DBF (U); the defaults are its for CIFAR-10.

  Those of `training.GeneratorHParams` for the inversion.

  Attributes:
    rounds: of inversion and unlearning.
    unlearn_epochs: passes of unlearning over the clean set, per round.
    lr: Adam's learning rate in unlearning.
  """

  rounds: int = 5
  unlearn_epochs: int = 30
  lr: float = 1e-4


def bti_dbf(
  classifier: types.Classifier, hp: BtiDbfHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network; it has the tap 'penultimate_map'.
    hp: hyper-parameters.

  Returns:
    A defense of 2 + 3·rounds phases that read 'clean'. Its extra holds the
    last 'generator' and 'mask', and the 'target' that the first round found.

  Raises:
    Unsupported: if the network has no tap 'penultimate_map'.
    ValueError: for a non-positive count, a negative rate or bound, a share
      outside (0, 1] or a U-Net that cannot halve the images so often.
  """
  hp = hp or BtiDbfHParams()
  checks.positive(rounds=hp.rounds, unlearn_epochs=hp.unlearn_epochs)
  checks.non_negative(lr=hp.lr)
  phases = training.alternate(
    classifier, hp, lambda number: _unlearn(classifier, hp, number), hp.rounds
  )
  return types.Defense(phases=phases, info='bti_dbf')


def _unlearn(
  classifier: types.Classifier, hp: BtiDbfHParams, number: int
) -> types.Phase:
  """The phase of one round that changes the model."""
  net = training.generator(classifier, hp)

  def objective(model, extra, batch):
    del extra
    # Batch-BN/no-update: statistics move once per step, by the mixed batch.
    clean = training.see(classifier, model, batch['image'], train=True)
    mixed = training.see(classifier, model, batch['mixed'], train=True)
    distance = jnp.mean((clean.map - mixed.map) ** 2)
    loss = training.cross_entropy(mixed.logits, batch['label']) + distance
    metrics = {
      'accuracy': training.accuracy(mixed.logits, batch['label']),
      'feature_mse': distance,
    }
    return loss, (metrics, mixed.model)

  return training.tune_mixed(
    lambda extra, images, key, index: net.apply(extra['generator'], images),
    objective,
    optim.adam(optim.constant(hp.lr)),
    share=hp.share,
    name=f'unlearn{number}',
    num_epochs=hp.unlearn_epochs,
    batch_size=hp.batch_size,
    grad_passes=2,
  )
