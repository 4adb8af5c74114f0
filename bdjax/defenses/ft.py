"""FT: fine-tunes a backdoored model on a small clean set.

Objective: min over all parameters of the mean cross-entropy on the defender's
clean images.

1. Draw a batch of the clean set, augmented by the data set's recipe.
2. One step of SGD with momentum and coupled weight decay on all parameters.
3. After the last epoch the weights are kept; there is no selection.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       weights
BN:          train-BN
Guarantees:  - running statistics move once per step
             - a learning rate of zero leaves the weights bit-identical
Divergences: - The reference keeps an epoch's short last batch; here it wraps
               round to the epoch's beginning, so that shapes are static.
             - The reference's cosine keeps T_max = 100 for any number of
               epochs; here it spans all epochs unless `t_max` is given.
Cost:        one forward/backward pass per step; memory of plain training

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.ft(classifier, defenses.FtHParams(epochs=2))
  >>> [phase.num_epochs for phase in defense.phases]
  [2]

References:
  The baseline of Wu et al., BackdoorBench, NeurIPS 2022.
  SCLBD/BackdoorBench: defense/ft.py
"""

from bdjax import checks, training, types


@types.hparams
class FtHParams(training.RecipeHParams):
  """Hyper-parameters of FT; the defaults are the benchmark's for CIFAR-10.

  Those of `training.RecipeHParams`, epochs being passes over the clean set,
  of which the short last batch wraps round.
  """

  batch_size: int = 256


def ft(
  classifier: types.Classifier, hp: FtHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of one phase, 'tune', that reads 'clean'.

  Raises:
    ValueError: for a non-positive count or an unknown schedule.
  """
  hp = hp or FtHParams()
  checks.positive(epochs=hp.epochs, batch_size=hp.batch_size)
  phase = training.supervised(
    classifier,
    training.optimizer(hp),
    name='tune',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='clean',
    augment=True,
    drop_last=False,
  )
  return types.Defense(phases=(phase,), info='ft')
