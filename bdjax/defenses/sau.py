"""SAU: unlearns adversarial images that fool both the old and the new model.

Risk of the backdoor is bounded by that of *shared* adversarial examples, which
the backdoored model f₀ and the one being purified f send to one wrong class.

1. On a batch, find δ per image by signed descent of J(δ) = −β_adv·L_adv +
   β_js·L_js with a projection after each step. L_adv is half the sum of both
   models' cross-entropies at x + δ, each without the images that already fool
   that model; L_js the Jensen–Shannon divergence of the two predictions,
   without the images that both send to one and the same wrong class. Wrong
   means other than the model's own prediction of x.
2. The suspicious images are those that f₀ sends at x + δ to a class y' that is
   neither their label nor its own prediction of x.
3. One step of AMSGrad on all parameters of f down λ_clean·CE(x) +
   λ_adv·CE(x + δ) + λ_shared·S, where S is −log(1 − p_y'(x + δ)) summed over
   the suspicious images and divided by the batch.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       δ in pixels, not clipped to [0, 1] unless `clip`; then weights
BN:          frozen-BN in every pass; with `train_bn`, train-BN in the pass of
             f over [x; x + δ] that is unlearned from
Guarantees:  - every δ is inside its ball; with step and radius alike it is 0
               or ±eps at every pixel
             - images that are shared already stay, so that the fixed number of
               steps ends where an early stop would
             - equal models have no divergence to follow
             - without suspicious images the step is one on clean images
             - the reference stays bit-identical
Divergences: - The paper calls an image suspicious if f₀ is fooled; the code
               asks for another class than f₀'s own prediction of x as well. We
               follow the code.
             - Starts of l2 and l1 searches are projected too.
             - The short last batch of an epoch wraps round (see FT).
Cost:        `inner_steps` forward and backward passes with respect to images
             of both models, one pass of f over two batches with respect to
             weights, one forward pass of f₀; memory of one more model

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.sau(classifier, defenses.SauHParams(epochs=2))
  >>> defense.phases[0].name
  'unlearn'

References:
  Wei et al., Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning
  Shared Adversarial Examples, NeurIPS 2023.
  shawkui/Shared_Adversarial_Unlearning: defense/sau.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, optim, perturb, training, types

STARTS = ('max', 'zero', 'random', 'min')
NORMS: dict[str, perturb.Norm | None] = {
  'linf': 'linf',
  'l2': 'l2',
  'l1': 'l1',
  'none': None,
}


@types.hparams
class SauHParams:
  """Hyper-parameters of SAU; the defaults are the paper's for CIFAR-10.

  Attributes:
    epochs: passes over the clean set, of which the short last batch wraps
      round.
    batch_size: images per step.
    lr: constant learning rate.
    b1: decay of AMSGrad's first moment.
    b2: decay of AMSGrad's second moment.
    eps: radius of δ in [0, 1] units.
    step_size: of the search, in [0, 1] units.
    norm: 'linf' | 'l2' | 'l1', per image; 'none' = no ball.
    inner_steps: steps of the search.
    start: where it begins: 'max', +eps everywhere | 'min', −eps | 'zero' |
      'random', uniform in [0, 1).
    clip: whether x + δ is clipped to [0, 1].
    beta_adv: weight of L_adv (the paper's λ₃).
    beta_js: weight of L_js (the paper's λ₄).
    lambda_clean: weight of the loss on clean images.
    lambda_adv: weight of plain adversarial training, for ablations.
    lambda_shared: weight of what is unlearned.
    train_bn: whether the student normalizes by the batch, and its running
      statistics move, as it unlearns.
  """

  epochs: int = 100
  batch_size: int = 256
  lr: float = 1e-4
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 0.2
  step_size: float = 0.2
  norm: str = 'linf'
  inner_steps: int = 5
  start: str = 'max'
  clip: bool = False
  beta_adv: float = 0.01
  beta_js: float = 1.0
  lambda_clean: float = 1.0
  lambda_adv: float = 0.0
  lambda_shared: float = 1.0
  train_bn: bool = False


class SauState(NamedTuple):
  """What is not trained by the phase.

  Attributes:
    batch_stats: the student's running statistics.
    reference: the model as it came.
    extra: of the `Carry`, handed on.
  """

  batch_stats: types.PyTree
  reference: types.ModelState
  extra: types.PyTree


def sau(
  classifier: types.Classifier, hp: SauHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of one phase, 'unlearn', that reads 'clean' without augmentation.
    Its metrics: `loss`, the loss on clean images (`clean_loss`), the one that
    is unlearned (`shared_loss`), `accuracy` and the share of `suspicious`
    images.

  Raises:
    ValueError: for a non-positive count, a negative weight, a radius in 0–255
      units, or an unknown norm or start.
  """
  hp = hp or SauHParams()
  _check(hp)

  def start(key, carry):
    del key
    model = carry.model
    return model.params, SauState(model.batch_stats, model, carry.extra)

  def prepare(params, rest, batch, clock):
    student = types.ModelState(params=params, batch_stats=rest.batch_stats)
    images, labels = batch['image'], batch['label']
    key = keys.stream(clock.key, 'start')
    deltas = search(
      classifier, student, rest.reference, images, labels, key, hp
    )
    both = jnp.concatenate([images, _attacked(images, deltas, hp.clip)])
    guesses = jnp.argmax(classifier.apply(rest.reference, both)[0], -1)
    clean, fooled = jnp.split(guesses, 2)
    return rest, {**batch, 'both': both, 'clean': clean, 'fooled': fooled}

  def objective(params, rest, batch, clock):
    del clock
    model = types.ModelState(params=params, batch_stats=rest.batch_stats)
    # Frozen-BN unless asked for; one pass, so that train-BN sees both halves.
    logits, new = classifier.apply(model, batch['both'], train=hp.train_bn)
    logits, attacked = jnp.split(logits, 2)
    loss, metrics = unlearning_loss(
      logits, attacked, batch['label'], batch['clean'], batch['fooled'], hp
    )
    return loss, (metrics, rest._replace(batch_stats=new.batch_stats))

  phase = training.fit(
    start,
    objective,
    optim.amsgrad(optim.constant(hp.lr), b1=hp.b1, b2=hp.b2),
    finish=lambda params, rest: types.Carry(
      model=types.ModelState(params=params, batch_stats=rest.batch_stats),
      extra=rest.extra,
    ),
    prepare=prepare,
    name='unlearn',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='clean',
    drop_last=False,
    grad_passes=2 * hp.inner_steps + 2,
  )
  return types.Defense(phases=(phase,), info='sau')


def search(
  classifier: types.Classifier,
  student: types.ModelState,
  reference: types.ModelState,
  images: types.Images,
  labels: types.Labels,
  key: jax.Array,
  hp: SauHParams,
) -> jax.Array:
  """Adversarial perturbations that both models share, one per image.

  Args:
    classifier: the network, frozen-BN in all passes.
    student: model that is being purified.
    reference: model as it came.
    images: [b, h, w, c] in [0, 1].
    labels: int [b].
    key: of the random start.
    hp: hyper-parameters.

  Returns:
    [b, h, w, c], inside the ball.
  """
  logits = lambda model, x: classifier.apply(model, x)[0]
  clean = jnp.argmax(logits(student, images), -1)
  clean_reference = jnp.argmax(logits(reference, images), -1)

  def loss_fn(deltas):
    attacked = _attacked(images, deltas, hp.clip)
    return search_loss(
      logits(student, attacked),
      logits(reference, attacked),
      labels,
      clean,
      clean_reference,
      hp,
    )

  norm = NORMS[hp.norm]
  first = {
    'max': lambda: jnp.full(images.shape, hp.eps),
    'min': lambda: jnp.full(images.shape, -hp.eps),
    'zero': lambda: jnp.zeros(images.shape),
    'random': lambda: jax.random.uniform(key, images.shape),
  }[hp.start]()
  return perturb.sign_descent(
    loss_fn,
    perturb.project_each(first.astype(images.dtype), hp.eps, norm),
    step_size=hp.step_size,
    eps=hp.eps,
    norm=norm,
    num_steps=hp.inner_steps,
  )


def search_loss(
  logits: types.Logits,
  reference: types.Logits,
  labels: types.Labels,
  clean: types.Labels,
  clean_reference: types.Labels,
  hp: SauHParams,
) -> jax.Array:
  """J(δ) of a batch, to be minimized.

  Args:
    logits: [b, n], the student's at x + δ.
    reference: [b, n], the reference's.
    labels: int [b], true ones.
    clean: int [b], the student's own predictions of x.
    clean_reference: int [b], the reference's.
    hp: weights of the two terms.

  Returns:
    A scalar.
  """
  guess, guess_reference = jnp.argmax(logits, -1), jnp.argmax(reference, -1)
  fooled, fooled_reference = guess != clean, guess_reference != clean_reference
  is_shared = fooled & fooled_reference & (guess == guess_reference)
  adversarial = 0.5 * (
    jnp.mean(jnp.where(fooled, 0, _cross_entropies(logits, labels)))
    + jnp.mean(
      jnp.where(fooled_reference, 0, _cross_entropies(reference, labels))
    )
  )
  divergence = training.jensen_shannon(logits, reference)
  divergence = jnp.mean(jnp.where(is_shared, 0, divergence))
  return -hp.beta_adv * adversarial + hp.beta_js * divergence


def unlearning_loss(
  logits: types.Logits,
  attacked: types.Logits,
  labels: types.Labels,
  clean: types.Labels,
  fooled: types.Labels,
  hp: SauHParams,
) -> tuple[jax.Array, types.Metrics]:
  """The loss of the weights.

  Args:
    logits: [b, n], the student's at x.
    attacked: [b, n], the student's at x + δ.
    labels: int [b], true ones.
    clean: int [b], the reference's predictions of x.
    fooled: int [b], the reference's predictions of x + δ.
    hp: weights of the three terms.

  Returns:
    (loss, {'clean_loss', 'shared_loss', 'accuracy', 'suspicious'}).
  """
  is_suspicious = (fooled != labels) & (fooled != clean)
  clean_loss = training.cross_entropy(logits, labels)
  adversarial = training.cross_entropy(attacked, labels)
  shared = jnp.where(is_suspicious, training.unlikelihood(attacked, fooled), 0)
  shared_loss = jnp.mean(shared)
  loss = (
    hp.lambda_clean * clean_loss
    + hp.lambda_adv * adversarial
    + hp.lambda_shared * shared_loss
  )
  return loss, {
    'clean_loss': clean_loss,
    'shared_loss': shared_loss,
    'accuracy': training.accuracy(logits, labels),
    'suspicious': jnp.mean(is_suspicious.astype(jnp.float32)),
  }


def _cross_entropies(logits, labels):
  """Cross-entropy of each example, [b]."""
  losses = optax.losses
  return losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def _attacked(images, deltas, clip: bool):
  """X + δ, clipped where asked for."""
  return perturb.clip_unit(images + deltas) if clip else images + deltas


def _check(hp: SauHParams) -> None:
  """Raises for what cannot be run."""
  checks.positive(
    epochs=hp.epochs, batch_size=hp.batch_size, inner_steps=hp.inner_steps
  )
  checks.one_of(NORMS, norm=hp.norm)
  checks.one_of(STARTS, start=hp.start)
  checks.pixel_budget(hp.norm, eps=hp.eps, step_size=hp.step_size)
  checks.non_negative(
    lr=hp.lr,
    beta_adv=hp.beta_adv,
    beta_js=hp.beta_js,
    lambda_clean=hp.lambda_clean,
    lambda_adv=hp.lambda_adv,
    lambda_shared=hp.lambda_shared,
  )
