"""MCR: a model on a curve from the backdoored one to a fine-tuned copy.

With w₀ the backdoored weights, w₁ the same after fine-tuning on clean images,
and φ(t) = (1 − t)²w₀ + 2t(1 − t)w_m + t²w₁ (or a chain of two straight lines),

  min over w_m of E_{t ~ U(0, 1)} CE(f(·; φ(t)))

The curve is accurate on clean images everywhere; off its ends the backdoor is
not. The model to deploy lies near w₀, whose accuracy it keeps.

1. 'end': fine-tune all parameters on the clean set, which gives w₁.
2. 'curve': from the midpoint, one step of SGD on w_m per augmented batch at
   one random t; its gradient is 2t(1 − t) times that at φ(t).
3. 'statistics': running statistics of φ(t*) anew, from one pass over the clean
   images.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       weights
BN:          train-BN for w₁; batch-BN/no-update along the curve; re-estimated
             at t*
Guarantees:  - the weights of the three points add up to one
             - t zero and t one are the ends, but for running statistics
             - the ends stay as the curve is trained
Divergences: - The reference never zeroes its gradients, which is why it needs
               a rate of 3e-5; here they are fresh and the rate is 0.01.
             - With more than three bends its middle models are one object; here
               there is one bend.
             - The short last batch of an epoch wraps round (see FT).
Cost:        one forward/backward pass per step, twice as many epochs as FT;
             memory of three models

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> [phase.name for phase in defenses.mcr(classifier).phases]
  ['end', 'curve', 'statistics']

References:
  Zhao et al., Bridging Mode Connectivity in Loss Landscapes and Adversarial
  Robustness, ICLR 2020.
  SCLBD/BackdoorBench: defense/mcr.py
"""

from typing import Any, NamedTuple

import jax

from bdjax import checks, connectivity, keys, training, tree, types


@types.hparams
class McrHParams(training.RecipeHParams):
  """Hyper-parameters of MCR; the defaults are the benchmark's for CIFAR-10.

  Those of `training.RecipeHParams` for the end and the curve, epochs being the
  curve's passes over the clean set, of which the short last batch wraps round.

  Attributes:
    end_epochs: passes over the clean set that make the other end.
    curve: 'bezier' | 'chain'.
    t: where on the curve the deployed model lies, in [0, 1].
  """

  end_epochs: int = 100
  curve: str = 'bezier'
  t: float = 0.1


class McrState(NamedTuple):
  """What is not trained as the curve is.

  Attributes:
    start: the backdoored model.
    end: weights of the fine-tuned one.
  """

  start: types.ModelState
  end: types.PyTree


def mcr(
  classifier: types.Classifier, hp: McrHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of three phases that read 'clean'. Its extra holds the weights
    'middle' and 'end'; `connectivity.curve_point` gives other positions.

  Raises:
    ValueError: for a non-positive count, a position outside [0, 1], or an
      unknown curve or schedule.
  """
  hp = hp or McrHParams()
  checks.positive(epochs=hp.epochs, end_epochs=hp.end_epochs)
  checks.positive(batch_size=hp.batch_size)
  checks.one_of(connectivity.CURVES, curve=hp.curve)
  checks.unit_interval(t=hp.t)
  reads: dict[str, Any] = dict(batch_size=hp.batch_size, reads='clean')
  recipe: dict[str, Any] = dict(augment=True, drop_last=False, **reads)

  def at(middle, rest, t):
    params = connectivity.curve_point(
      rest.start.params, middle, rest.end, t, hp.curve
    )
    stats = rest.start.batch_stats
    return types.ModelState(params=params, batch_stats=stats)

  def start(key, carry):
    del key
    first, end = carry.extra.model, carry.model.params
    return tree.interpolate(first.params, end, 0.5), McrState(first, end)

  def objective(middle, rest, batch, clock):
    t = jax.random.uniform(keys.stream(clock.key, 'position'))
    # batch-BN/no-update: statistics of the curve belong to no model.
    model = at(middle, rest, t)
    logits, _ = classifier.apply(model, batch['image'], train=True)
    metrics = {'accuracy': training.accuracy(logits, batch['label'])}
    return training.cross_entropy(logits, batch['label']), (metrics, rest)

  end = training.supervised(
    classifier,
    training.optimizer(hp),
    name='end',
    num_epochs=hp.end_epochs,
    **recipe,
  )
  curve = training.fit(
    start,
    objective,
    training.optimizer(hp),
    finish=lambda middle, rest: types.Carry(
      model=at(middle, rest, hp.t), extra={'middle': middle, 'end': rest.end}
    ),
    name='curve',
    num_epochs=hp.epochs,
    **recipe,
  )
  statistics = training.recalibration(classifier, name='statistics', **reads)
  phases = (training.remember(end), curve, statistics)
  return types.Defense(phases=phases, info='mcr')
