"""LIRA: a generator learns a trigger too faint to see, the model to obey it.

With n(x) the normalized image, σ the data set's deviations, r the label rule, ξ
a generator with values in [−1, 1] and T a copy of it:

  T(x) = clip(x + eps·σ·T(n(x)), 0, 1)

  trigger   min over ξ of CE(f(ξ(x)), r(y))
            min over f of α·CE(f(x), y) + (1 − α)·CE(f(T(x)), r(y))
  implant   min over f of the same, T fixed

1. Batches are cropped, rotated and flipped, with the mean color in what is
   empty; every image is used with and without trigger.
2. For `trigger_epochs` the generator takes a step of Adam and the model one of
   SGD on each batch; T becomes ξ at the end of each epoch.
3. T stays as it is from then on, and the model goes on by the recipe.
4. At test time T runs on its running statistics.

Access:      the whole training: data, batches, loss;
             data: every batch whole, there is no poisoning ratio;
             stage: training
Space:       pixel [0, 1]; eps is in normalized units, eps·std in pixels
BN:          model: train-BN in both passes, the clean one first. ξ: train-BN
             while it learns. T: frozen-BN
Guarantees:  - |x' − x| ≤ eps·std in each channel
             - images stay in the unit interval
             - the generator's step moves the generator alone, the model's the
               model alone
             - T stays as it is within an epoch of the phase 'trigger', and for
               good after it
             - poisoning leaves batches as they are
Divergences: - BackdoorBench lets the generator's gradients leak into the
               model's step and keeps the model of the first phase; the authors
               clear them and keep that of the second, and so does this.
             - The references clip to one range of normalized values for all
               channels; here it is the pixels' range.
             - The pass in which the generator learns does not move the model's
               running statistics.
             - Crop, angle and flip are drawn per image, with interpolation;
               `aug_shared_per_batch=True` follows BackdoorBench. Paddings
               shrink with images below 32 a side.
             - Images that cannot be halved as often get fewer levels.
             - The first phase is part of the epochs of the recipe.
Cost:        per step of the first phase three forward and backward passes of
             the model, one of ξ and one pass through T; two and one pass after
             it; memory: two generators, Adam's moments

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = lira(spec, LiraHParams(eps=0.1, width=2))
  >>> images, labels = jnp.zeros((20, 8, 8, 3), 'uint8'), jnp.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> grey = jnp.full((1, 8, 8, 3), 0.5)
  >>> stamped = attack.stamp(state, grey, jax.random.key(1), jnp.array([0]))
  >>> 0 < float(abs(stamped - grey).max()) <= 0.1
  True

References:
  Doan et al., LIRA: Learnable, Imperceptible and Robust Backdoor Attacks, ICCV
  2021.
  sunbelbd/invisible_backdoor_attacks
  SCLBD/BackdoorBench: attack/lira.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, models, optim, training, types
from bdjax.attacks import mixing, pairing, pictures, poisoning

# The nets by name, with the channels of the first of their four levels.
GENERATORS = {
  'autoencoder': (models.strided_autoencoder, 16),
  'unet': (models.skip_autoencoder, 64),
}


@types.hparams
class LiraHParams(mixing.AugmentHParams, pairing.PairHParams):
  """Hyper-parameters of LIRA; the defaults are the authors' for CIFAR-10.

  Attributes:
    eps: largest change, in normalized units.
    alpha: α, weight of the clean task.
    generator: 'autoencoder' or 'unet'.
    width: channels of its first level, twice as many at each further one; None
      = 16 for the autoencoder, 64 for the U-Net.
    trigger_epochs: epochs in which the generator learns, of the recipe's.
    lr_generator: Adam's learning rate for it.
    lr_model: the model's learning rate in those epochs, without decay.
    momentum: its momentum in those epochs.
  """

  eps: float = 0.01
  alpha: float = 0.5
  generator: str = 'autoencoder'
  width: int | None = None
  trigger_epochs: int = 50
  lr_generator: float = 1e-4
  lr_model: float = 0.01
  momentum: float = 0.9


def lira(
  spec: types.DataSpec,
  hp: LiraHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape, normalization and classes of the data set.
    hp: hyper-parameters; those of type float may be traced.
    assets: none are taken.

  Returns:
    The attack; its trigger is {'fixed': T, 'learning': ξ, 'optimizer': Adam's
    state}, each net a ModelState.

  Raises:
    UnknownName: for any asset.
    ValueError: if a hyper-parameter is out of range, or images cannot be
      halved.
  """
  hp = hp or LiraHParams()
  pictures.from_assets(assets, '', ())
  _check(hp)
  make, width = GENERATORS[hp.generator]
  width = hp.width or width
  net = make(spec, widths=tuple(width * 2**i for i in range(4)))
  adam = optax.adam(hp.lr_generator)
  rule = pairing.relabel_rule(spec, hp)
  std = jnp.asarray(spec.std, jnp.float32).reshape(1, 1, 1, -1)

  def add(generator, images, *, train=False):
    change, generator = net.apply(generator, images, train=train)
    return jnp.clip(images + hp.eps * std * change, 0, 1), generator

  def init(key, num):
    del num
    generator = net.init(keys.stream(key, 'generator'))
    return {
      'fixed': generator,
      'learning': generator,
      'optimizer': adam.init(generator.params),
    }

  def stamp(trigger, images, key, index):
    del key, index
    return add(trigger['fixed'], images)[0]

  def objective(state, classifier, model, batch, key):
    del key
    images, labels = batch['image'], batch['label']
    clean = pairing.forward(classifier, model, images, labels)
    stamped, _ = add(state.trigger['fixed'], images)
    here = dataclasses.replace(model, batch_stats=clean.model.batch_stats)
    backdoor = pairing.forward(classifier, here, stamped, rule.apply(labels))
    loss = hp.alpha * clean.loss + (1 - hp.alpha) * backdoor.loss
    return loss, (clean.logits, backdoor.model)

  def learn(state, classifier, model, batch, key):
    """The generator's step; in the first phase it goes before the model's."""
    del key
    trigger, goal = state.trigger, rule.apply(batch['label'])

    def loss_fn(params):
      here = dataclasses.replace(trigger['learning'], params=params)
      stamped, after = add(here, batch['image'], train=True)
      return pairing.forward(classifier, model, stamped, goal).loss, after

    before = trigger['learning'].params
    (loss, after), grads = jax.value_and_grad(loss_fn, has_aux=True)(before)
    updates, optimizer = adam.update(grads, trigger['optimizer'], before)
    params = optax.apply_updates(before, updates)
    new = {
      **trigger,
      'learning': dataclasses.replace(after, params=params),
      'optimizer': optimizer,
    }
    return dataclasses.replace(state, trigger=new), {'generator': loss}

  attack = pairing.from_parts(
    'lira',
    spec,
    rule,
    pairing.Parts(
      init=init,
      stamp=stamp,
      objective=objective,
      update=poisoning.keep_trigger,
      augment=mixing.augment_fn(spec, hp, rate=1.0),
    ),
  )

  def phases(classifier, implant):
    later = training.shortened(implant, trigger_epochs=hp.trigger_epochs)
    both = training.implant(
      classifier,
      attack._replace(update=learn),
      optim.sgd(
        optim.constant(hp.lr_model), momentum=hp.momentum, weight_decay=0.0
      ),
      name='trigger',
      num_epochs=hp.trigger_epochs,
      batch_size=implant.batch_size,
      reads=implant.reads,
      grad_passes=3,
    )
    return _copied(both), later._replace(grad_passes=2)

  return attack._replace(phases=phases)


def _check(hp: LiraHParams) -> None:
  """Refuses hyper-parameters that cannot be meant."""
  checks.one_of(tuple(GENERATORS), generator=hp.generator)
  checks.positive(width=hp.width, trigger_epochs=hp.trigger_epochs)
  checks.unit_interval(alpha=hp.alpha)
  checks.non_negative(
    eps=hp.eps,
    lr_generator=hp.lr_generator,
    lr_model=hp.lr_model,
    momentum=hp.momentum,
  )


def _copied(phase: types.Phase) -> types.Phase:
  """The same phase, where T becomes ξ whenever an epoch has ended."""

  def step(state: training.FitState, batch, clock):
    # The last step of an epoch is known by the first one of the next.
    stats, attack = state.rest
    is_new = clock.step % (clock.num_steps // clock.num_epochs) == 0
    pick = lambda new, old: jnp.where(is_new, new, old)
    trigger = attack.trigger
    fixed = jax.tree.map(pick, trigger['learning'], trigger['fixed'])
    rest = (stats, _with_fixed(attack, fixed))
    return phase.step(state._replace(rest=rest), batch, clock)

  def finish(state: training.FitState) -> types.Carry:
    carry = phase.finish(state)
    attack = _with_fixed(carry.extra, carry.extra.trigger['learning'])
    return dataclasses.replace(carry, extra=attack)

  return phase._replace(step=step, finish=finish)


def _with_fixed(attack: types.AttackState, fixed) -> types.AttackState:
  return dataclasses.replace(attack, trigger={**attack.trigger, 'fixed': fixed})
