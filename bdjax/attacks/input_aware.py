"""Input-aware: every image has a trigger of its own, drawn by two generators.

With n(x) the normalized image, G and M the generators of patterns and masks,
squash(z) = tanh(z)/(2 + 1e-7) + 0.5 and th(m) = squash(20·m − 10):

  T(x, z) = x + (g(z) − x)·th(m(z)),  g = squash(G(n(z))), m = squash(M(n(z)))
  d(a, b) = √ mean over h, w, c of (a − b)², of every pair

  mask      min over M of λ_norm·mean relu(th(m(x)) − density)
                        + λ_div·mean d(x, z) / (d(th(m(x)), th(m(z))) + 1e-7)
  implant   min over f and G of CE(f(mixed batch), labels)
                        + λ_div·mean d(x, z) / (d(g(x), g(z)) + 1e-7)

An image triggered is T(x, x). A cover is T(x, z), with another image's trigger
and the label it has. d of images and of patterns is that of normalized ones.

1. M learns alone for `mask_epochs`: sparse masks that differ as images do. It
   stays as it is from then on.
2. Of every augmented batch the first share is triggered and relabelled, the
   target class (all2one) or the next one (all2all); as many are covers; the
   rest stays clean.
3. G takes a step of Adam on the joint loss, then the model, on the images of G
   before that step. G runs once for the poisoned and once for the covers.
4. At test time both generators run on their running statistics.

Access:      the whole training: data, batches, loss;
             data: poison_ratio of every batch, no fixed subset;
             stage: training
Space:       pixel [0, 1]; patterns lie in (0, 1); distances in normalized units
BN:          model: train-BN on the mixed batch. G: train-BN on each group of
             its own while training, frozen-BN in testing. M: train-BN in the
             phase 'mask', frozen-BN after it
Guarantees:  - slots: int(p·B) poisoned, as many covers, the rest bit-identical
             - covers keep their labels
             - the mask does not learn while the model does
             - model and generator descend on the same images
             - triggers depend on the image
             - images stay in the unit interval, stamped ones on the 8-bit grid
Divergences: - The other images of covers and of distances come from the same
               batch, which is shuffled: each slot gets the one a random number
               of slots further on, never its own nor the one it is compared
               with. The reference has a second, independently shuffled loader.
               Masks of a batch and of the same batch in another order are
               those of one pass: running statistics of M move once per step.
             - BackdoorBench's generators end in a tanh of a tanh, the paper's
               and the authors' in one; so does the default. `double_tanh=True`
               is BackdoorBench's.
             - Neither released code ever clears the gradients of G, which pile
               up over the whole run; here they are those of the step.
               `accumulate_g_grads=True` piles them up.
             - λ_div enters once; the reference multiplies the mask's term by it
               twice, which is the same for 1.
             - Maps of less than 2×2 are not made: images below 16 a side get
               fewer levels.
             - The model's learning rate is the recipe's. G's rate is constant;
               the published drops lie behind the published length.
             - The triggers of cross test images are those of `num_others`
               training images drawn once.
             - The mask phase is part of the epochs of the recipe.
Cost:        per step two passes through G and M on poisoned and covers, twice
             through G, and a second forward and backward pass through the
             model; memory: `num_others` images, two optimizer states

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = input_aware(spec, InputAwareHParams(widths=(4, 8)))
  >>> index = jnp.arange(20)
  >>> images, labels = jnp.zeros((20, 8, 8, 3), 'uint8'), index % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> batch = {'image': images / 255, 'label': labels, 'index': index}
  >>> kind = attack.poison(state, batch, jax.random.key(1))['kind']
  >>> jnp.bincount(kind).tolist()  # clean, poisoned, covers
  [16, 2, 2]

References:
  Nguyen & Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020.
  VinAIResearch/input-aware-backdoor-attack-release
  SCLBD/BackdoorBench: attack/inputaware.py
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, models, optim, training, tree, types
from bdjax.attacks import mixing, pictures, poisoning
from bdjax.attacks.triggers import levels

_MASK_DROPS = (10, 20)  # epochs at which the rate of M falls to a tenth
_B1 = 0.5


@types.hparams
class InputAwareHParams(mixing.SlotHParams):
  """Hyper-parameters of Input-aware; the defaults are BackdoorBench's.

  Attributes:
    lr_generator: Adam's learning rate for G.
    lr_mask: Adam's learning rate for M, a tenth of it from epochs 10 and 20.
    mask_epochs: epochs in which M learns, of those of the recipe.
    mask_density: mask values up to which nothing is to be paid.
    lambda_div: λ_div, weight of the terms that tell images apart.
    lambda_norm: λ_norm, weight of the mask's density.
    stabilizer: added to the distances that are divided by.
    widths: channels of the generators' levels; at most as many levels.
    num_others: training images whose triggers `cross` borrows.
    double_tanh: a further tanh behind the generators.
    accumulate_g_grads: whether gradients of G pile up over the steps.
  """

  lr_generator: float = 0.01
  lr_mask: float = 0.01
  mask_epochs: int = 25
  mask_density: float = 0.032
  lambda_div: float = 1.0
  lambda_norm: float = 100.0
  stabilizer: float = 1e-7
  widths: tuple[int, ...] = (32, 64, 128)
  num_others: int = 1000
  double_tanh: bool = False
  accumulate_g_grads: bool = False


class Nets(NamedTuple):
  """The generators; `draw` functions end in what they stand for.

  Attributes:
    generator: G.
    mask: M.
    patterns: (state of G, images, train) -> (g [b, h, w, c], state).
    masks: (state of M, images, train) -> (th(m) [b, h, w, 1], state).
  """

  generator: models.Generator
  mask: models.Generator
  patterns: Callable[..., tuple[jax.Array, types.ModelState]]
  masks: Callable[..., tuple[jax.Array, types.ModelState]]


def input_aware(
  spec: types.DataSpec,
  hp: InputAwareHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape, classes and normalization of the data set.
    hp: hyper-parameters; floats but `poison_ratio` may be traced.
    assets: none are taken.

  Returns:
    The attack; what it remembers is {'generator': ModelState of G, 'mask':
    ModelState of M, 'optimizer': state of G's Adam, 'others': uint8 [r, h, w,
    c]} and, with `accumulate_g_grads`, 'grads'.

  Raises:
    UnknownName: for any asset.
    ValueError: if images cannot be halved, or a hyper-parameter is out of
      range; by `phases`, if no epoch is left for the model.
  """
  hp = hp or InputAwareHParams()
  pictures.from_assets(assets, '', ())
  _check(hp)
  nets, adam = _nets(spec, hp), optax.adam(hp.lr_generator, b1=_B1)
  rule, info = mixing.describe('input_aware', spec, hp, hp.poison_ratio)

  def init_fn(key, images, labels):
    checks.typed_key(key=key)
    poisoning.check_training_set(images, labels, spec.image_shape)
    generator = nets.generator.init(keys.stream(key, 'generator'))
    trigger = {
      'generator': generator,
      'mask': nets.mask.init(keys.stream(key, 'mask')),
      'optimizer': adam.init(generator.params),
      'others': mixing.draw_others(
        keys.stream(key, 'others'), images, hp.num_others
      ),
    }
    if hp.accumulate_g_grads:
      trigger['grads'] = jax.tree.map(jnp.zeros_like, generator.params)
    kind = jnp.full(len(labels), types.CLEAN, jnp.int8)
    return types.AttackState(trigger=trigger, kind=kind)

  def poison_fn(state, batch, key):
    images, labels = batch['image'], batch['label']
    mixing.check_images(images, key, spec)
    plan = _slots(batch, hp)
    kind = mixing.kinds(plan, len(labels), keys.stream(key, 'slots'))
    donor = _donors(plan, len(labels), keys.stream(key, 'donors'))
    batch = batch | {'clean': images, 'donor': donor, 'kind': kind}
    trigger = state.trigger
    mixed = _mix(nets, trigger['mask'], trigger['generator'], batch, plan)
    return batch | {
      'image': mixed.images,
      'label': jnp.where(kind == types.POISONED, rule.apply(labels), labels),
    }

  def update_fn(state, classifier, model, batch, key):
    del key
    plan, trigger = _slots(batch, hp), state.trigger

    def loss_fn(params):
      before = dataclasses.replace(trigger['generator'], params=params)
      mixed = _mix(nets, trigger['mask'], before, batch, plan)
      logits, _ = classifier.apply(model, mixed.images, train=True)
      loss = training.cross_entropy(logits, batch['label'])
      diversity = _diversity(mixed, spec, hp.stabilizer)
      return loss + hp.lambda_div * diversity, (mixed.generator, diversity)

    (_, (after, diversity)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      trigger['generator'].params
    )
    new = _descend(adam, trigger, after, grads)
    if plan.rate < 1:  # G rests where nothing is poisoned
      is_used = jnp.any(batch['kind'] == types.POISONED)
      pick = lambda one, other: jnp.where(is_used, one, other)
      new = jax.tree.map(pick, new, trigger)
    return dataclasses.replace(state, trigger=new), {'diversity': diversity}

  def triggered(trigger, images, donors):
    pattern, _ = nets.patterns(trigger['generator'], donors, False)
    mask, _ = nets.masks(trigger['mask'], donors, False)
    return levels.stored(_blend(images, pattern, mask), hp.quantize_mode)

  def stamp_fn(state, images, key, index):
    del index
    mixing.check_images(images, key, spec)
    return triggered(state.trigger, images, images)

  def cross_fn(state, images, key, index):
    mixing.check_images(images, key, spec)
    others = mixing.pick_others(state.trigger['others'], key, index)
    return triggered(state.trigger, images, others)

  def phases_fn(classifier, implant):
    del classifier
    later = training.shortened(implant, mask_epochs=hp.mask_epochs)
    return _mask_phase(nets, spec, hp, implant), later

  return types.Attack(
    init=init_fn,
    poison=poison_fn,
    stamp=stamp_fn,
    relabel=rule.apply,
    update=update_fn,
    objective=poisoning.cross_entropy,
    info=dataclasses.replace(info, order='augment_poison'),
    cross=cross_fn,
    phases=phases_fn,
  )


def _check(hp: InputAwareHParams) -> None:
  """Refuses hyper-parameters that cannot be meant."""
  checks.positive(
    mask_epochs=hp.mask_epochs,
    num_others=hp.num_others,
    stabilizer=hp.stabilizer,
    widths=hp.widths,
  )
  checks.non_negative(
    lr_generator=hp.lr_generator,
    lr_mask=hp.lr_mask,
    lambda_div=hp.lambda_div,
    lambda_norm=hp.lambda_norm,
  )
  checks.unit_interval(mask_density=hp.mask_density)


def _squash(z: jax.Array) -> jax.Array:
  """Onto (0, 1)."""
  return jnp.tanh(z) / (2 + 1e-7) + 0.5


def _nets(spec: types.DataSpec, hp: InputAwareHParams) -> Nets:
  generator, mask = (
    models.encoder_decoder(spec, outputs=outputs, widths=hp.widths)
    for outputs in (spec.image_shape[-1], 1)
  )

  def bend(z: jax.Array) -> jax.Array:
    return jnp.tanh(z) if hp.double_tanh else z

  def patterns(state, images, train):
    z, state = generator.apply(state, images, train=train)
    return _squash(bend(z)), state

  def masks(state, images, train):
    z, state = mask.apply(state, images, train=train)
    return _squash(20 * _squash(bend(z)) - 10), state

  return Nets(generator, mask, patterns, masks)


def _blend(images, pattern, mask) -> jax.Array:
  return images + (pattern - images) * mask


def _slots(batch: types.Batch, hp: InputAwareHParams) -> mixing.Slots:
  return mixing.slots(len(batch['label']), hp.poison_ratio, per_poisoned=1.0)


def _donors(plan: mixing.Slots, size: int, key: jax.Array) -> jax.Array:
  """Whose trigger a slot gets: a cover that of a slot further on.

  Not that of the poisoned slot to whose pattern the cover's is compared.
  """
  further = jax.random.randint(key, (), 1, max(size - 1, 2))
  further += further >= size - plan.num_poisoned
  slot = jnp.arange(size)
  last = plan.num_poisoned + plan.num_cover
  is_cover = (slot >= plan.num_poisoned) & (slot < last)
  return jnp.where(is_cover, (slot + further) % size, slot)


class _Mixed(NamedTuple):
  """A batch with triggers; of poisoned and covers one entry each.

  Attributes:
    images: [b, h, w, c].
    donors: images whose triggers they are.
    patterns: their patterns.
    generator: G with new running statistics.
  """

  images: jax.Array
  donors: list[jax.Array]
  patterns: list[jax.Array]
  generator: types.ModelState


def _mix(nets: Nets, mask_state, generator, batch, plan) -> _Mixed:
  """Makes triggers, each group with its own statistics, and puts them in."""
  last = plan.num_poisoned + plan.num_cover
  clean, parts, all_donors, patterns = batch['clean'], [], [], []
  for start, stop in ((0, plan.num_poisoned), (plan.num_poisoned, last)):
    if start == stop:  # no room for covers
      continue
    donors = clean[batch['donor'][start:stop]]
    pattern, generator = nets.patterns(generator, donors, True)
    mask = jax.lax.stop_gradient(nets.masks(mask_state, donors, False)[0])
    parts.append(_blend(clean[start:stop], pattern, mask))
    all_donors.append(donors)
    patterns.append(pattern)
  images = mixing.fill(clean, batch['kind'], parts)
  return _Mixed(images, all_donors, patterns, generator)


def _distance(one, other, scale: float | jax.Array = 1.0) -> jax.Array:
  """The d of every pair, [b]; of equal ones 0, with gradient 0."""
  square = jnp.mean(((one - other) / scale) ** 2, axis=(1, 2, 3))
  is_zero = square == 0
  return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))


def _std(spec: types.DataSpec) -> jax.Array:
  return jnp.asarray(spec.std, jnp.float32).reshape(1, 1, 1, -1)


def _diversity(mixed: _Mixed, spec, stabilizer) -> jax.Array:
  """What G pays for like patterns on unlike images."""
  if len(mixed.patterns) < 2:
    return jnp.zeros(())
  num = min(map(len, mixed.patterns))
  std = _std(spec)
  pair = lambda x: _distance(x[0][:num], x[1][:num], std)
  return jnp.mean(pair(mixed.donors) / (pair(mixed.patterns) + stabilizer))


def _descend(adam, trigger, after: types.ModelState, grads):
  """The trigger after G's step; `after` is G with new running statistics."""
  new = {}
  if 'grads' in trigger:
    grads = tree.add(trigger['grads'], grads)
    new = {'grads': grads}
  before = trigger['generator'].params
  updates, optimizer = adam.update(grads, trigger['optimizer'], before)
  params = optax.apply_updates(before, updates)
  generator = dataclasses.replace(after, params=params)
  return {**trigger, 'generator': generator, 'optimizer': optimizer, **new}


def _mask_phase(nets: Nets, spec, hp, implant: types.Phase) -> types.Phase:
  """The phase in which M learns."""

  def start(key, carry):
    del key
    mask = carry.extra.trigger['mask']
    return mask.params, (carry, mask.batch_stats)

  def objective(params, rest, batch, clock):
    carry, stats = rest
    state = types.ModelState(params=params, batch_stats=stats)
    mask, state = nets.masks(state, batch['image'], True)
    size = len(batch['label'])
    further = jax.random.randint(clock.key, (), 1, max(size, 2))
    other = lambda x: x[(jnp.arange(size) + further) % size]
    unlike = _distance(batch['image'], other(batch['image']), _std(spec))
    diversity = unlike / (_distance(mask, other(mask)) + hp.stabilizer)
    density = jnp.mean(jax.nn.relu(mask - hp.mask_density))
    loss = hp.lambda_norm * density + hp.lambda_div * jnp.mean(diversity)
    return loss, ({'density': jnp.mean(mask)}, (carry, state.batch_stats))

  def finish(params, rest):
    carry, stats = rest
    mask = types.ModelState(params=params, batch_stats=stats)
    trigger = {**carry.extra.trigger, 'mask': mask}
    return dataclasses.replace(
      carry, extra=dataclasses.replace(carry.extra, trigger=trigger)
    )

  return training.fit(
    start,
    objective,
    optim.adam(optim.step_epochs(hp.lr_mask, _MASK_DROPS), b1=_B1),
    finish=finish,
    name='mask',
    num_epochs=hp.mask_epochs,
    batch_size=implant.batch_size,
    reads=implant.reads,
    augment=True,
  )
