"""NAD: a fine-tuned copy teaches the model where to look.

With A_l the energy of layer l over channels, Σ_c F², divided by its norm over
places, student s and teacher t:

  CE(s(x), y) + Σ_l β_l · mean (A_l^s − A_l^t)²

1. The teacher is the backdoored model, fine-tuned on the clean set.
2. The student starts from the backdoored model again: per augmented batch one
   step of SGD on all of its parameters down the loss above.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       weights
BN:          train-BN for the student, and for the teacher while it is made;
             frozen-BN for the teacher as it teaches
Guarantees:  - a teacher like the student costs nothing
             - running statistics move once per step, from those of the model
               as it came
             - without weights the student is fine-tuned plainly
             - the teacher stays bit-identical as it teaches
Divergences: - The paper attends to the three groups of a WideResNet. The
               benchmark takes stages 3 and 4 of PreAct-ResNet18 and the pooled
               features, whose map of one place is 1 for all networks; that is
               `layers=('stage3', 'stage4', 'penultimate')`. The default is
               stages 2, 3 and 4, and where a network has no stages, the last
               convolutions, three at most, with the last of the weights.
             - The benchmark runs the student four times per step, which moves
               its statistics four times; here it is one pass.
             - Its teacher's cosine spans 100 epochs, of which ten are run: a
               constant rate within 2 %, which is the default here.
             - The short last batch of an epoch wraps round (see FT).
Cost:        one forward/backward pass of the student and one forward pass of
             the teacher per step; memory of one more model and of the maps

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.nad(classifier, defenses.NadHParams(epochs=2))
  >>> [(phase.name, phase.num_epochs) for phase in defense.phases]
  [('teach', 10), ('distill', 2)]

References:
  Li et al., Neural Attention Distillation: Erasing Backdoor Triggers from Deep
  Neural Networks, ICLR 2021.
  SCLBD/BackdoorBench: defense/nad.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, training, types

STAGES = ('stage2', 'stage3', 'stage4')


@types.hparams
class NadHParams(training.RecipeHParams):
  """Hyper-parameters of NAD; the defaults are the benchmark's for CIFAR-10.

  Those of `training.RecipeHParams` for teacher and student, epochs being the
  student's passes over the clean set, of which the short last batch wraps
  round.

  Attributes:
    teacher_epochs: passes over the clean set that make the teacher.
    layers: taps to compare, three at most by depth; () = those of the
      architecture.
    beta1: weight of the first of three layers.
    beta2: weight of the last but one.
    beta3: weight of the last.
  """

  epochs: int = 10
  batch_size: int = 256
  schedule: str = 'constant'
  teacher_epochs: int = 10
  layers: tuple[str, ...] = ()
  beta1: float = 500.0
  beta2: float = 1000.0
  beta3: float = 1000.0


class NadState(NamedTuple):
  """What is not trained as the teacher teaches.

  Attributes:
    batch_stats: the student's running statistics.
    teacher: the fine-tuned model.
    extra: of the `Carry`, handed on.
  """

  batch_stats: types.PyTree
  teacher: types.ModelState
  extra: types.PyTree


def nad(
  classifier: types.Classifier, hp: NadHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of two phases, 'teach' and 'distill', that read 'clean'. Metrics
    of the second: `loss`, `accuracy` and `distillation`, the part of the loss
    that is not cross-entropy.

  Raises:
    ValueError: for a non-positive count, a negative weight, an unknown layer
      or schedule, or more than three layers.
  """
  hp = hp or NadHParams()
  checks.positive(epochs=hp.epochs, teacher_epochs=hp.teacher_epochs)
  checks.positive(batch_size=hp.batch_size)
  checks.non_negative(beta1=hp.beta1, beta2=hp.beta2, beta3=hp.beta3)
  layers = attended_layers(classifier, hp.layers)
  weights = (hp.beta1, hp.beta2, hp.beta3)[-len(layers) :]
  recipe = dict(
    batch_size=hp.batch_size, reads='clean', augment=True, drop_last=False
  )

  def start(key, carry):
    del key
    student = carry.extra.model
    return student.params, NadState(
      student.batch_stats, carry.model, carry.extra.extra
    )

  def objective(params, rest, batch, clock):
    del clock
    images = batch['image']
    student = types.ModelState(params=params, batch_stats=rest.batch_stats)
    logits, new, ours = _attend(classifier, student, images, layers, True)
    # Frozen-BN; no gradient reaches the teacher, which is not among `params`.
    _, _, theirs = _attend(classifier, rest.teacher, images, layers, False)
    distances = [
      training.attention_distance(ours[name], theirs[name]) for name in layers
    ]
    distillation = sum(
      (b * d for b, d in zip(weights, distances, strict=True)), jnp.zeros(())
    )
    loss = training.cross_entropy(logits, batch['label']) + distillation
    metrics = {
      'accuracy': training.accuracy(logits, batch['label']),
      'distillation': distillation,
    }
    return loss, (metrics, rest._replace(batch_stats=new.batch_stats))

  teach = training.supervised(
    classifier,
    training.optimizer(hp),
    name='teach',
    num_epochs=hp.teacher_epochs,
    **recipe,
  )
  distill = training.fit(
    start,
    objective,
    training.optimizer(hp),
    finish=lambda params, rest: types.Carry(
      model=types.ModelState(params=params, batch_stats=rest.batch_stats),
      extra=rest.extra,
    ),
    name='distill',
    num_epochs=hp.epochs,
    **recipe,
  )
  return types.Defense(phases=(training.remember(teach), distill), info='nad')


def attended_layers(
  classifier: types.Classifier, layers: tuple[str, ...] = ()
) -> tuple[str, ...]:
  """The taps at which student and teacher are compared.

  Args:
    classifier: the network.
    layers: taps to take; () = stages 2 to 4 where the network has them, else
      its last three convolutions.

  Returns:
    One to three taps.

  Raises:
    ValueError: for an unknown tap or more than three of them.
  """
  info = classifier.info
  if not layers:
    has_stages = set(STAGES) <= set(info.taps)
    return STAGES if has_stages else info.conv_taps[-3:]
  for name in layers:
    checks.one_of(info.taps, layers=name)
  if len(layers) > 3:
    raise ValueError(
      f'`layers` names {len(layers)} taps, but there are three weights; take '
      'three at most.'
    )
  return tuple(layers)


def _attend(classifier, state, images, layers, train):
  """Logits, state and features {tap: activation} of a single pass."""
  seen: dict[str, jax.Array] = {}

  def record(name):
    def edit(x):
      seen[name] = x
      return x

    return edit

  logits, new = classifier.apply(
    state, images, train=train, edits={name: record(name) for name in layers}
  )
  return logits, new, seen
