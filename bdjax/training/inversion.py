"""Phases that invert a trigger: a generator learns to move backdoor features.

With φ the last feature map, the tap 'penultimate_map', h the layers behind it,
n(·) the model's normalization and G a U-Net on normalized images:

  pretrain  min CE(softmax f(x), softmax f(Gx)) + MSE(φ(x), φ(Gx))
                + w·MSE(n(x), n(Gx)),        w = 100 if that MSE > 0.1 else 0.01
  mask      min over u of CE(h(m⊙φ), y) − CE(h((1 − m)⊙φ), y),   m = squash(u)
  attack    benign = MSE(m⊙φ(x), m⊙φ(Gx)), backdoor = the same with 1 − m;
            min MSE(n(x), n(Gx)) where that is > 0.3 or benign > 3, else
            min 0.01·benign − backdoor; plus CE(f(Gx), t̂) once t̂ is known
  target    t̂ = the most frequent prediction on G(x + noise)

m keeps the features that tell the classes; a generator that moves the others
as far as it can finds those of the trigger. All of it by Adam, on clean images
alone; nothing here changes the model. What a round finds stands in
`Carry.extra`, a dict of

  'generator'   params of the U-Net
  'mask'        m [h, w, c] in (0, 1)
  'scratch'     running statistics of the copy of the model that made the mask
  'target'      t̂, int32 []
  'optimizers'  states that outlive a phase, see `phases.keep_optimizer`

Entries of others are handed on.

BN: pretrain and target frozen-BN; mask train-BN on a scratch copy, on which
attack then runs frozen-BN.

References:
  Xu et al., Towards Reliable and Efficient Backdoor Trigger Inversion via
  Decoupling Benign Features, ICLR 2024.
  AISafety-HKUST/stable_backdoor_purification: fine_tune/BTIDBF/{pretrain,
  btidbfu}.py
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, models, optim, perturb, types
from bdjax.training import feature_map, losses, phases
from bdjax.training.pruning import with_extra


@types.hparams
class GeneratorHParams:
  """How a trigger is inverted; the defaults are the paper's for CIFAR-10.

  Attributes:
    batch_size: images per step; an epoch's short last batch wraps round.
    pretrain_epochs: passes that make the generator an identity.
    mask_epochs: passes over the clean set per mask.
    attack_epochs: passes of the generator as the attacker, per round.
    generator_lr: Adam's learning rate for the generator.
    mask_lr: Adam's learning rate for the mask.
    image_bound: image MSE, in normalized units, that the attacker may spend.
    feature_bound: MSE of benign features that it may spend.
    noise: deviation of what is added to images before the vote on the target,
      in normalized units.
    share: part of a batch that is generated when unlearning; ⌊share·b⌋ + 1
      images.
    width: channels of the U-Net's first block.
    levels: how often the U-Net halves images; None = see `models.unet`.
  """

  batch_size: int = 128
  pretrain_epochs: int = 50
  mask_epochs: int = 20
  attack_epochs: int = 30
  generator_lr: float = 1e-3
  mask_lr: float = 0.01
  image_bound: float = 0.3
  feature_bound: float = 3.0
  noise: float = 0.03
  share: float = dataclasses.field(default=0.2, metadata={'static': True})
  width: int = 32
  levels: int | None = None


class VoteState(NamedTuple):
  """State of the phase 'target'.

  Attributes:
    carry: what it came with.
    counts: int32 [n], predictions so far.
  """

  carry: types.Carry
  counts: jax.Array


def pretrain_generator(
  classifier: types.Classifier, hp: GeneratorHParams
) -> types.Phase:
  """A phase that makes a generator and teaches it to be an identity.

  Args:
    classifier: the network; it stays.
    hp: hyper-parameters.

  Returns:
    The phase 'pretrain'. Metrics: `loss`, `image_mse` and `agreement`, the
    share of images whose prediction survives the generator.

  Raises:
    Unsupported: if the network has no tap 'penultimate_map'.
    ValueError: for a bad hyper-parameter.
  """
  check_inversion(classifier, hp)
  net = generator(classifier, hp)

  def start(key, carry):
    return net.init(key), carry

  def objective(params, carry, batch, clock):
    del clock
    images = batch['image']
    made = net.apply(params, images)
    clean, moved = (
      feature_map.see(classifier, carry.model, x) for x in (images, made)
    )
    distance = perturb.normalized_mse(images, made, classifier.info.std)
    loss = perturb.identity_loss(
      (clean.logits, clean.map), (moved.logits, moved.map), distance
    )
    agreement = losses.accuracy(moved.logits, jnp.argmax(clean.logits, -1))
    return loss, ({'image_mse': distance, 'agreement': agreement}, carry)

  return phases.fit(
    start,
    objective,
    _adam(hp.generator_lr),
    finish=lambda params, carry: with_extra(carry, generator=params),
    num_epochs=hp.pretrain_epochs,
    **_reads('pretrain', hp),
  )


def invert_trigger(
  classifier: types.Classifier, hp: GeneratorHParams, number: int
) -> tuple[types.Phase, ...]:
  """The phases of one round of inversion; a pretrained generator goes before.

  Args:
    classifier: the network; it stays.
    hp: hyper-parameters.
    number: of the round, from 1; the first ends with the vote on the target.

  Returns:
    The phases 'mask<i>', 'attack<i>' and, in round 1, 'target1'.
  """
  mask = decouple_features(classifier, hp, f'mask{number}')
  attack = train_attacker(
    classifier, hp, f'attack{number}', is_targeted=number > 1
  )
  if number > 1:
    return mask, attack
  return mask, attack, vote_target(classifier, hp, f'target{number}')


def decouple_features(
  classifier: types.Classifier, hp: GeneratorHParams, name: str
) -> types.Phase:
  """A phase that finds the mask of benign features.

  Args:
    classifier: the network.
    hp: hyper-parameters.
    name: of the phase.

  Returns:
    The phase; it writes 'mask' and 'scratch'. Metrics: `loss`, and the
    accuracies `kept` and `removed` of the features under m and under 1 − m.
  """
  check_inversion(classifier, hp)

  def start(key, carry):
    shape = feature_map.map_shape(classifier, carry.model)
    return jax.random.normal(key, shape), (carry, carry.model.batch_stats)

  def objective(free, rest, batch, clock):
    del clock
    carry, stats = rest
    model = types.ModelState(params=carry.model.params, batch_stats=stats)
    seen = feature_map.see(classifier, model, batch['image'], train=True)
    mask = perturb.squash(free)[None]
    kept, removed = (
      feature_map.see_from(classifier, model, part * seen.map, train=True)
      for part in (mask, 1 - mask)
    )
    label = batch['label']
    loss = losses.cross_entropy(kept, label)
    loss -= losses.cross_entropy(removed, label)
    metrics = {
      'kept': losses.accuracy(kept, label),
      'removed': losses.accuracy(removed, label),
    }
    return loss, (metrics, (carry, seen.model.batch_stats))

  return phases.fit(
    start,
    objective,
    _adam(hp.mask_lr),
    finish=lambda free, rest: with_extra(
      rest[0], mask=perturb.squash(free), scratch=rest[1]
    ),
    num_epochs=hp.mask_epochs,
    **_reads(name, hp),
  )


def train_attacker(
  classifier: types.Classifier,
  hp: GeneratorHParams,
  name: str,
  *,
  is_targeted: bool,
) -> types.Phase:
  """A phase in which the generator moves what the mask leaves out.

  Its Adam goes on from round to round.

  Args:
    classifier: the network.
    hp: hyper-parameters.
    name: of the phase.
    is_targeted: whether it also leads to 'target'.

  Returns:
    The phase; it moves 'generator'. Metrics: `loss`, `image_mse` and the
    `benign` and `backdoor` MSEs.
  """
  check_inversion(classifier, hp)
  net = generator(classifier, hp)

  def objective(params, carry, batch, clock):
    del clock
    copy = types.ModelState(
      params=carry.model.params, batch_stats=carry.extra['scratch']
    )
    images = batch['image']
    made = net.apply(params, images)
    moved = feature_map.see(classifier, copy, made)
    mask = carry.extra['mask'][None]
    gap = feature_map.see(classifier, copy, images).map - moved.map
    benign = jnp.mean((mask * gap) ** 2)
    backdoor = jnp.mean(((1 - mask) * gap) ** 2)
    distance = perturb.normalized_mse(images, made, classifier.info.std)
    loss = perturb.attacker_loss(
      benign, backdoor, distance, hp.image_bound, hp.feature_bound
    )
    if is_targeted:
      target = jnp.full_like(batch['label'], carry.extra['target'])
      loss += losses.cross_entropy(moved.logits, target)
    metrics = {'image_mse': distance, 'benign': benign, 'backdoor': backdoor}
    return loss, (metrics, carry)

  phase = phases.fit(
    lambda key, carry: (carry.extra['generator'], carry),
    objective,
    _adam(hp.generator_lr),
    finish=lambda params, carry: with_extra(carry, generator=params),
    num_epochs=hp.attack_epochs,
    **_reads(name, hp),
  )
  return phases.keep_optimizer(phase, 'generator')


def vote_target(
  classifier: types.Classifier, hp: GeneratorHParams, name: str
) -> types.Phase:
  """A phase in which generated images vote on the attacker's class.

  Args:
    classifier: the network.
    hp: hyper-parameters.
    name: of the phase.

  Returns:
    A phase of one epoch; it writes 'target'. Metric: `moved`, the share of
    the batch that is not predicted as its label.
  """
  check_inversion(classifier, hp)
  info, net = classifier.info, generator(classifier, hp)

  def init(key, carry):
    del key
    return VoteState(carry, jnp.zeros(info.num_classes, jnp.int32))

  def step(state, batch, clock):
    images, carry = batch['image'], state.carry
    key = keys.stream(clock.key, 'noise')
    draw = lambda k: jax.random.normal(k, images.shape[1:])
    noise = jax.vmap(draw)(keys.per_example(key, batch['index']))
    std = jnp.asarray(info.std).reshape(1, 1, 1, -1)
    noisy = images + hp.noise * std * noise
    made = net.apply(carry.extra['generator'], noisy)
    logits = feature_map.see(classifier, carry.model, made).logits
    predicted = jnp.argmax(logits, -1)
    counts = state.counts.at[predicted].add(batch['mask'].astype(jnp.int32))
    moved = jnp.mean((predicted != batch['label']).astype(jnp.float32))
    return VoteState(carry, counts), {'moved': moved}

  def finish(state):
    target = jnp.argmax(state.counts).astype(jnp.int32)
    return with_extra(state.carry, target=target)

  return types.Phase(
    init=init,
    step=step,
    finish=finish,
    num_epochs=1,
    grad_passes=0,
    **_reads(name, hp),
  )


def generator(
  classifier: types.Classifier, hp: GeneratorHParams
) -> models.UNet:
  """The U-Net for the images of a classifier."""
  info = classifier.info
  return models.unet(
    info.image_shape,
    mean=info.mean,
    std=info.std,
    width=hp.width,
    levels=hp.levels,
  )


def check_inversion(classifier: types.Classifier, hp: GeneratorHParams) -> None:
  """Raises where network or hyper-parameters cannot be meant.

  Raises:
    Unsupported: if the network has no tap 'penultimate_map'.
    ValueError: for a bad hyper-parameter.
  """
  feature_map.require_map(classifier)
  checks.positive(
    batch_size=hp.batch_size,
    pretrain_epochs=hp.pretrain_epochs,
    mask_epochs=hp.mask_epochs,
    attack_epochs=hp.attack_epochs,
  )
  checks.non_negative(
    generator_lr=hp.generator_lr,
    mask_lr=hp.mask_lr,
    image_bound=hp.image_bound,
    feature_bound=hp.feature_bound,
    noise=hp.noise,
  )
  checks.fraction(share=hp.share)


def _reads(name: str, hp: GeneratorHParams) -> dict[str, Any]:
  """Fields that all phases share."""
  return dict(
    name=name,
    batch_size=hp.batch_size,
    reads='clean',
    augment=True,
    drop_last=False,
  )


def _adam(lr) -> optax.GradientTransformationExtraArgs:
  return optim.adam(optim.constant(lr))
