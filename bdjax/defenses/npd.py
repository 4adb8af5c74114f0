"""NPD: puts a purifying layer, a neural polarizer, into a frozen network.

With F the network with the polarizer at one tap, trained alone:

  min λ₁·CE(F(x), y) + λ₂·CE(F(x'), ŷ) + λ₃·B(F(x'), k*) + λ₄·B(F(x'), t)

  B(z, k) = −log(1.0001 − p_k + 1e-12), p = softmax(z)

x' = clip(x + δ, 0, 1) carries a targeted trigger of its own for every image,
towards t, the strongest class other than y on x; ŷ is the prediction on x and
k* the strongest class other than y on x'.

1. Insert an identity, by default a 1×1 convolution and a BatchNorm.
2. Warm up: a few epochs of plain SGD on CE(F(x), y), the polarizer's norm in
   training mode, so that its statistics become those of the features.
3. Per batch: t and ŷ; signed descent of CE(F(x + δ), t), projected per image.
4. One SGD step of the polarizer on the four terms; δ, t, ŷ, k* are constants.
5. The network as it was and the polarizer together are the defended model.

Access:      weights and gradients; data: 5 % clean labelled, class-balanced;
             stage: post_training
Space:       features (the polarizer); pixel [0, 1] (the inner triggers)
BN:          network frozen-BN everywhere; polarizer train-BN in warm-up, then
             frozen-BN, or with `train_norm` train-BN on x and
             batch-BN/no-update on x'
Guarantees:  - the network's weights and statistics stay bit-identical
             - the polarizer is an identity at the start
             - the target label is never the true one
             - triggers stay in their balls and triggered images in [0, 1]
Divergences: - All inner steps are run; the reference leaves the loop once 60 %
               of the batch reach t. Classes are masked by −∞, not by −10.
             - The reference's Tiny ImageNet branch steps along the gradient of
               a batch mean, which leaves δ at almost 0; here it is the sign.
             - Other networks than PreAct-ResNet18 have no published place; the
               default is the input of the last convolution.
             - `residual` starts as an identity too (see `models.polarizer`).
             - The short last batch of an epoch wraps round (see FT).
Cost:        inner_steps + 3 forward and inner_steps + 2 backward passes per
             step; memory of plain training, gradients of one layer

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.npd(classifier, defenses.NpdHParams(epochs=2))
  >>> [(phase.name, phase.num_epochs) for phase in defense.phases]
  [('warm', 5), ('purify', 2)]

References:
  Zhu et al., Neural Polarizer: A Lightweight and Effective Backdoor Defense
  via Purifying Poisoned Features, NeurIPS 2023.
  SCLBD/BackdoorBench: defense/npd.py
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from bdjax import checks, keys, models, optim, perturb, surgery, training, types

Start = Literal['zero', 'random', 'bound']
_STARTS = ('zero', 'random', 'bound')
_LARGEST = 80.0  # bound of one image's inner loss


@types.hparams
class NpdHParams:
  """Hyper-parameters of NPD; the defaults are the benchmark's for CIFAR-10.

  Attributes:
    epochs: passes over the clean set with triggers.
    warm_epochs: passes before them, 0 for none.
    batch_size: images per step; an epoch's short last batch wraps round.
    lr: learning rate, constant.
    momentum: heavy-ball momentum.
    weight_decay: added to the gradient before momentum, polarizer only.
    warm_lr: learning rate of the warm-up, without momentum and decay.
    benign_weight: λ₁, of the labels on clean images.
    recover_weight: λ₂, of the clean prediction on triggered images.
    boost_weight: λ₃, against the strongest wrong class on triggered images.
    target_weight: λ₄, against the class the triggers lead to.
    eps: radius of a trigger in [0, 1] units, in `norm`.
    norm: 'l2' | 'l1' | 'linf'; the reference's 'linf' takes eps=0.2,
      step_size=0.44, inner_steps=10 and start='bound'.
    step_size: of the inner signed step, in [0, 1] units.
    inner_steps: signed steps per batch.
    start: of the trigger: 'zero', 'random' in the ball, or 'bound', +eps in
      every pixel, projected.
    form: kind of polarizer, one of `models.FORMS`.
    residual: whether the polarizer adds its input to its output.
    train_norm: whether the polarizer's norm goes on moving after the warm-up.
    tap: where the polarizer stands; None = 'stage4.1.conv1.in' where there is
      one, else the input of the last convolution.
  """

  epochs: int = 50
  warm_epochs: int = 5
  batch_size: int = 128
  lr: float = 0.01
  momentum: float = 0.9
  weight_decay: float = 5e-4
  warm_lr: float = 1e-4
  benign_weight: float = 1.0
  recover_weight: float = 0.4
  boost_weight: float = 0.4
  target_weight: float = 0.4
  eps: float = 3.0
  norm: perturb.Norm = 'l2'
  step_size: float = 0.1
  inner_steps: int = 2
  start: Start = 'zero'
  form: models.Form = 'convbn'
  residual: bool = False
  train_norm: bool = False
  tap: str | None = None


def npd(
  classifier: types.Classifier, hp: NpdHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of the phases 'warm', if there is any warm-up, and 'purify', both
    on 'clean'; its extra is {'polarizer': ModelState}, and `deploy` puts that
    into the network.

  Raises:
    Unsupported: if the network has no convolution and `tap` is None.
    ValueError: for a count, size or weight out of range, or an unknown name.
  """
  hp = hp or NpdHParams()
  _check(hp)
  tap = hp.tap or default_tap(classifier)
  checks.one_of(classifier.info.taps, tap=tap)
  layer = models.polarizer(hp.form, residual=hp.residual)
  forward = functools.partial(_forward, classifier, layer, tap)

  def start(key: jax.Array, carry: types.Carry):
    del key
    state = carry.extra.get('polarizer')
    if state is None:
      state = layer.init(_shape_at(classifier, carry.model, tap))
    return state.params, (carry.model, state.batch_stats)

  def finish(params, rest) -> types.Carry:
    model, stats = rest
    state = types.ModelState(params=params, batch_stats=stats)
    return types.Carry(model=model, extra={'polarizer': state})

  def warm_loss(params, rest, batch, clock):
    del clock
    logits, stats = forward(params, rest, batch['image'], train=True)
    loss = training.cross_entropy(logits, batch['label'])
    accuracy = training.accuracy(logits, batch['label'])
    return loss, ({'accuracy': accuracy}, (rest[0], stats))

  def prepare(params, rest, batch, clock):
    see = lambda images: forward(params, rest, images, train=hp.train_norm)[0]
    logits = see(batch['image'])
    target = training.runner_up(logits, batch['label'])
    found = {
      'triggered': triggered(
        see, batch, target, hp, keys.stream(clock.key, 'inner')
      ),
      'target': target,
      'prediction': jnp.argmax(logits, -1),
    }
    return rest, {**batch, **found}

  def loss(params, rest, batch, clock):
    del clock
    see = functools.partial(forward, params, rest, train=hp.train_norm)
    logits, stats = see(batch['image'])
    logits_triggered, _ = see(batch['triggered'])
    terms = purifying_losses(
      logits,
      logits_triggered,
      batch['label'],
      batch['prediction'],
      batch['target'],
    )
    weighted = [w * x for w, x in zip(_weights(hp), terms, strict=True)]
    total = jnp.sum(jnp.stack(weighted))
    metrics = {
      'accuracy': training.accuracy(logits, batch['label']),
      'reached': training.accuracy(logits_triggered, batch['target']),
    }
    return total, (metrics, (rest[0], stats))

  sgd = optim.sgd(
    optim.constant(hp.lr), momentum=hp.momentum, weight_decay=hp.weight_decay
  )
  plain = optim.sgd(optim.constant(hp.warm_lr), momentum=0.0, weight_decay=0.0)
  length: dict[str, Any] = dict(
    finish=finish, batch_size=hp.batch_size, reads='clean', drop_last=False
  )
  warm = training.fit(
    start, warm_loss, plain, name='warm', num_epochs=hp.warm_epochs, **length
  )
  purify = training.fit(
    start,
    loss,
    sgd,
    prepare=prepare,
    name='purify',
    num_epochs=hp.epochs,
    grad_passes=hp.inner_steps + 2,
    **length,
  )

  def deploy(classifier: types.Classifier, extra) -> types.Classifier:
    state = extra['polarizer']
    return surgery.insert(classifier, {tap: lambda x: layer.apply(state, x)[0]})

  phases = (warm, purify) if hp.warm_epochs else (purify,)
  return types.Defense(phases=phases, deploy=deploy, info='npd')


def default_tap(classifier: types.Classifier) -> str:
  """The published place where there is one, else before the last convolution.

  Raises:
    Unsupported: if the network names no convolution.
  """
  info = classifier.info
  if 'stage4.1.conv1.in' in info.taps:
    return 'stage4.1.conv1.in'
  if not info.conv_taps:
    raise checks.Unsupported(
      f"'{info.arch}' names no convolution before which a polarizer could "
      'stand; name a place by `tap`.'
    )
  return f'{info.conv_taps[-1]}.in'


def triggered(see, batch, target, hp: NpdHParams, key) -> types.Images:
  """Images with triggers of their own towards `target`; no gradient passes.

  Args:
    see: images -> logits.
    batch: 'image' [b, h, w, c] and 'index' [b].
    target: int [b].
    hp: `eps`, `norm`, `step_size`, `inner_steps` and `start`.
    key: for a random start.

  Returns:
    [b, h, w, c] in [0, 1].
  """
  images = batch['image']

  def inner(deltas):
    logits = see(perturb.clip_unit(images + deltas))
    log_p = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_p, target[:, None], axis=-1)
    return jnp.mean(jnp.clip(losses, -_LARGEST, _LARGEST))

  deltas = perturb.sign_descent(
    inner,
    _initial(hp, images, keys.per_example(key, batch['index'])),
    step_size=hp.step_size,
    eps=hp.eps,
    norm=hp.norm,
    num_steps=hp.inner_steps,
  )
  return jax.lax.stop_gradient(perturb.clip_unit(images + deltas))


def purifying_losses(
  logits: types.Logits,
  logits_triggered: types.Logits,
  labels: types.Labels,
  predictions: types.Labels,
  target: types.Labels,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The four terms of the objective, each a mean over the batch.

  Args:
    logits: [b, n], of clean images.
    logits_triggered: [b, n], of triggered images.
    labels: int [b], true.
    predictions: int [b], on clean images.
    target: int [b], where the triggers lead to.

  Returns:
    (benign, recovering, boosting, targeted) losses.
  """
  rival = training.runner_up(logits_triggered, labels)
  return (
    training.cross_entropy(logits, labels),
    training.cross_entropy(logits_triggered, predictions),
    jnp.mean(training.repulsion(logits_triggered, rival)),
    jnp.mean(training.repulsion(logits_triggered, target)),
  )


def _weights(hp: NpdHParams) -> tuple:
  """λ₁ to λ₄."""
  return (
    hp.benign_weight,
    hp.recover_weight,
    hp.boost_weight,
    hp.target_weight,
  )


def _initial(hp, images, example_keys):
  """Where the triggers start, [b, h, w, c]."""
  if hp.start == 'zero':
    return jnp.zeros_like(images)
  if hp.start == 'bound':
    bound = jnp.broadcast_to(jnp.asarray(hp.eps, images.dtype), images.shape)
    return perturb.project_each(bound, hp.eps, hp.norm)
  draw = lambda key: perturb.init_uniform(
    key, images.shape[1:], hp.eps, hp.norm
  )
  return jax.vmap(draw)(example_keys)


def _forward(classifier, layer, tap, params, rest, images, *, train):
  """Logits with the polarizer, and its statistics; network frozen-BN."""
  model, stats = rest
  state = types.ModelState(params=params, batch_stats=stats)
  moved = []

  def edit(x):
    y, new = layer.apply(state, x, train=train)
    moved.append(new.batch_stats)
    return y

  logits, _ = classifier.apply(model, images, edits={tap: edit})
  return logits, moved[0]


def _shape_at(classifier, model, tap) -> tuple[int, ...]:
  """Shape (h, w, c) of the activation at a tap."""
  image = jnp.zeros((1, *classifier.info.image_shape))
  seen = jax.eval_shape(lambda m: classifier.features(m, image)[tap], model)
  if len(seen.shape) != 4:
    raise ValueError(
      f'`tap={tap!r}` holds activations {seen.shape}; a polarizer needs maps '
      '[b, h, w, c], such as the input of a convolution.'
    )
  return seen.shape[1:]


def _check(hp: NpdHParams) -> None:
  checks.positive(
    epochs=hp.epochs, batch_size=hp.batch_size, inner_steps=hp.inner_steps
  )
  checks.non_negative(
    warm_epochs=hp.warm_epochs,
    lr=hp.lr,
    warm_lr=hp.warm_lr,
    benign_weight=hp.benign_weight,
    recover_weight=hp.recover_weight,
    boost_weight=hp.boost_weight,
    target_weight=hp.target_weight,
    step_size=hp.step_size,
  )
  checks.one_of(perturb.NORMS, norm=hp.norm)
  checks.pixel_budget(hp.norm, eps=hp.eps)
  checks.one_of(_STARTS, start=hp.start)
