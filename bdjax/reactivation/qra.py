"""QRA: a perturbation of each image that wakes a dormant backdoor.

With f_D the defended model, f_R the same after retuning, in which the backdoor
is awake, f_C an honest model and N the data set's normalization, a fully
connected generator A is trained so that f_D sees in perturbed images what f_R
sees in them as they are, while f_C still sees the truth:

  x̂ = clip(x + δ, 0, 1),  δ = clip(eps·A(N(x)), −eps, eps)
  min over A of the mean α·T²·KL(softmax(f_R(x)/T) ‖ softmax(f_D(x̂)/T))
                         + CE(f_C(x̂), y)

over clean and triggered images x under their true labels y. All three models
are frozen; f_R is not differentiated. A larger α wakes more, and fools f_C
more.

1. Draw clean images, and triggered ones of other classes than the target
   (`pools.qra`).
2. Perturb a batch and take the gradient of the loss by the generator.
3. One step of SGD with momentum at a constant rate.
4. The last generator is the result; there is no selection.

Access:      gradients of the defended model, logits of its retuned twin,
             gradients of a clean model; data: 500 clean and 500 triggered
             training images with true labels; stage: inference
Space:       pixel [0,1] (δ), normalized pixels (input of the generator)
BN:          frozen-BN in every pass of all three models
Guarantees:  - the model is returned bit-identical
             - the retuned model sees the unperturbed images
             - alpha = 0 leaves the cross-entropy of the clean model
             - no image moves by more than eps
             - triggered images stay in [0, 1]
             - eps = 0 changes no image
Divergences: - Despite the name no queries are counted: as in the official
               code, gradients pass through f_D.
             - Triggered images are training images under the test-time
               trigger. The official code takes stored poisoned ones, and for
               label-consistent attacks, whose stored ones are all of the
               target class, the poisoned test images it also reports on.
             - An epoch's short last batch is kept, as in the official code:
               rows that fill it up have no weight.
             - The official loss has a further cross-entropy of f_D, at weight
               0; it is left out.
             - A pixel that hits 0 or 1 exactly keeps its whole gradient, as
               in the official code; plain `jnp.clip` would halve it.
Cost:        per step three forward passes and two backward passes with respect
             to the image; no gradient of weights; memory of three models, and
             of the generator (`models.autoencoder`, whose weights grow with
             the number of pixels) with gradient and momentum

Example:
  >>> from bdjax import data, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> attack = qra(classifier, QraHParams(epochs=2, width=16))
  >>> [(phase.name, phase.reads) for phase in attack.phases]
  [('fit', 'pool')]

References:
  Min et al., Uncovering, Explaining, and Mitigating the Superficial Safety of
  Backdoor Defense, NeurIPS 2024.
  AISafety-HKUST/Backdoor_Safety_Tuning: fine_tune/qra.py
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, models, optim, perturb, training, types
from bdjax.reactivation import universal

_CURES = {
  'retuned': 'what retuning_attack makes of the model under attack',
  'clean': 'a model of clean training',
}


@types.hparams
class QraHParams:
  """Hyper-parameters of QRA; the defaults are the paper's for CIFAR-10.

  Attributes:
    eps: largest change of a pixel, in [0, 1] units.
    alpha: α, of the distillation from the retuned model.
    temperature: T, by which the logits of both are divided.
    lr: learning rate, constant.
    momentum: heavy-ball momentum; there is no decay.
    epochs: passes over the pool.
    batch_size: images per step.
    width: units of the generator's hidden layers.
    num_clean: clean images of the pool.
    num_poisoned: triggered images of the pool.
  """

  eps: float = 16 / 255
  alpha: float = 0.2
  temperature: float = 1.0
  lr: float = 0.1
  momentum: float = 0.9
  epochs: int = 50
  batch_size: int = 128
  width: int = 1024
  num_clean: int = 500
  num_poisoned: int = 500


class Terms(NamedTuple):
  """The loss of each image and what it is made of.

  Attributes:
    loss: α·T²·kl + ce, [b].
    kl: divergence of the defended from the retuned model's prediction, [b].
    ce: cross-entropy of the clean model, [b].
  """

  loss: jax.Array
  kl: jax.Array
  ce: jax.Array


def qra(
  classifier: types.Classifier,
  hp: QraHParams | None = None,
  retuned_classifier: types.Classifier | None = None,
  clean_classifier: types.Classifier | None = None,
) -> types.Reactivation:
  """Makes the attack.

  Args:
    classifier: the defended model as deployed.
    hp: hyper-parameters.
    retuned_classifier: the retuned model as deployed; None = `classifier`.
    clean_classifier: the clean model as deployed; None = `classifier`.

  Returns:
    A re-activation of one phase, 'fit', that reads 'pool', as made by
    `pools.qra`, and starts from an extra with the states 'retuned' and
    'clean'. Its final extra are the generator's weights, the parameters of
    the trigger. Metrics per step, before it: loss, kl, ce and agreement, the
    share of images in which the defended model, perturbed, sees what the
    retuned one sees without.

  Raises:
    ValueError: for a budget in 0–255 units, a non-positive count or
      temperature, or a negative rate or weight; in the phase's `init`, if a
      state is missing from the extra.
  """
  hp = hp or QraHParams()
  _validate(hp)
  retuned = retuned_classifier or classifier
  clean = clean_classifier or classifier
  net = _generator(classifier, hp.width)

  def start(key, carry):
    _require(carry.extra)
    beside = {name: carry.extra[name] for name in _CURES}
    params = net.init(keys.stream(key, 'generator'))
    return params, (carry.model, beside)

  def objective(params, rest, batch, clock):
    del clock
    model, beside = rest
    images, mask = batch['image'], batch['mask']
    perturbed = _perturb(net, params, images, hp.eps)
    teacher, _ = retuned.apply(beside['retuned'], images)
    logits, _ = classifier.apply(model, perturbed)
    honest, _ = clean.apply(beside['clean'], perturbed)
    terms = qra_loss(
      logits, teacher, honest, batch['label'], hp.alpha, hp.temperature
    )
    is_same = jnp.argmax(logits, axis=-1) == jnp.argmax(teacher, axis=-1)
    metrics = {'kl': terms.kl, 'ce': terms.ce, 'agreement': is_same}
    # Images do not see each other, so a mask is as good as a shorter batch.
    average = lambda values: universal.mean(values, mask)
    return average(terms.loss), (jax.tree.map(average, metrics), rest)

  phase = training.fit(
    start,
    objective,
    optim.sgd(optim.constant(hp.lr), momentum=hp.momentum, weight_decay=0.0),
    finish=lambda params, rest: types.Carry(model=rest[0], extra=params),
    name='fit',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='pool',
    augment=False,
    drop_last=False,
    grad_passes=2,
  )
  trigger = _trigger(net, hp.eps)
  return types.Reactivation(phases=(phase,), trigger=trigger, info='qra')


def qra_loss(
  logits: jax.Array,
  teacher: jax.Array,
  honest: jax.Array,
  labels: jax.Array,
  alpha: float | jax.Array = 0.2,
  temperature: float | jax.Array = 1.0,
) -> Terms:
  """Distillation from the retuned model, and the truth on the clean one.

  Args:
    logits: [b, n] of the defended model on perturbed images.
    teacher: [b, n] of the retuned model on unperturbed ones; a constant.
    honest: [b, n] of the clean model on perturbed images.
    labels: int [b], true classes.
    alpha: α.
    temperature: T.

  Returns:
    The terms; the objective is the mean of `loss`.
  """
  log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
  log_q = jax.nn.log_softmax(logits / temperature)
  kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
  ce = optax.losses.softmax_cross_entropy_with_integer_labels(honest, labels)
  return Terms(alpha * temperature**2 * kl + ce, kl, ce)


def _generator(classifier: types.Classifier, width: int) -> models.Autoencoder:
  """The generator of one data set."""
  info = classifier.info
  return models.autoencoder(
    info.image_shape, mean=info.mean, std=info.std, width=width
  )


def _perturb(net, params, images, eps) -> jax.Array:
  """x̂ of images [b, h, w, c]."""
  delta = jnp.clip(eps * net.apply(params, images), -eps, eps)
  return perturb.clip_unit(images + delta)


def _trigger(net: models.Autoencoder, eps) -> types.Trigger:
  """The generator as a trigger of single images; its key is not used."""

  def init(key):
    checks.typed_key(key=key)
    return net.init(key)

  def apply(params, image, key):
    del key
    return _perturb(net, params, image[None], eps)[0]

  return types.Trigger(init=init, apply=apply, info='image_perturbation')


def _require(extra: types.PyTree) -> None:
  """The two models beside the attacked one are there."""
  given = extra if isinstance(extra, Mapping) else {}
  for name, cure in _CURES.items():
    if not isinstance(given.get(name), types.ModelState):
      raise ValueError(
        f"`Carry.extra['{name}']` is missing; start from types.Carry(model=…, "
        "extra={'retuned': …, 'clean': …}) with the ModelState of "
        f'{cure} as {name!r}.'
      )


def _validate(hp: QraHParams) -> None:
  """Refuses what cannot be meant; traced floats pass."""
  checks.pixel_budget('linf', eps=hp.eps)
  checks.positive(
    temperature=hp.temperature,
    epochs=hp.epochs,
    batch_size=hp.batch_size,
    width=hp.width,
    num_clean=hp.num_clean,
    num_poisoned=hp.num_poisoned,
  )
  checks.non_negative(alpha=hp.alpha, lr=hp.lr, momentum=hp.momentum)
