"""I-BAU: unlearns a universal perturbation through an implicit hypergradient.

Objective, with one perturbation δ for all images, in units of the normalized
image (a pixel image becomes x + std ⊙ δ, unclipped):

  min_θ CE(f_θ(x + δ*(θ)), y),
  δ*(θ) = argmin_δ −CE(f_θ(x + δ), ŷ) + 0.001 ‖δ‖²,   ŷ = argmax f_θ(x)

Rounds, each of two passes over the clean set:

1. From δ = 0, one descent step of the inner loss per batch, of rate 10.
2. Per batch: the outer loss with δ on 1 % of the images, at least one; its
   hypergradient through K fixed-point steps of Φ(δ, θ) = δ − 0.1 ∇_δ g, where
   g is the inner loss, with true labels, on one batch kept for that purpose.
3. One AMSGrad step along that hypergradient.

Access:      weights, gradients and second derivatives; data: 5 % clean
             labelled; stage: post_training
Space:       normalized pixels, without a bound (δ); weights
BN:          frozen-BN everywhere
Guarantees:  - running statistics are bit-identical
             - the perturbation starts from zero in every round
             - a learning rate of zero leaves the weights bit-identical
Divergences: - The reference draws and augments its batches once and goes
               through the same pixels in every round; here every pass has an
               order and an augmentation of its own, and only the kept batch,
               the first of the first outer pass, stays.
             - It leaves the fixed-point iteration when a step changes less
               than 1e-10; here all K steps are made.
             - The short last batch of an epoch wraps round (see FT).
Cost:        outer steps: a forward/backward pass, a linearized descent step
             and K + 1 pullbacks, about 2K + 6 passes; memory of twice plain
             training

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.i_bau(classifier, defenses.IBauHParams(rounds=3))
  >>> defense.phases[0].num_epochs  # two passes per round
  6

References:
  Zeng et al., Adversarial Unlearning of Backdoors via Implicit Hypergradient,
  ICLR 2022.
  SCLBD/BackdoorBench: defense/i-bau.py
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, optim, training, types


@types.hparams
class IBauHParams:
  """Hyper-parameters of I-BAU; the defaults are the benchmark's for CIFAR-10.

  Attributes:
    rounds: times that a perturbation is sought and unlearned.
    batch_size: images per step; an epoch's short last batch wraps round.
    lr: AMSGrad's learning rate, constant.
    weight_decay: added to the hypergradient.
    inner_lr: descent rate of the perturbation, in normalized units.
    penalty: weight of ‖δ‖² in the inner loss.
    map_lr: step size of the fixed-point map.
    num_fixed_point: K, fixed-point steps.
    patch_ratio: share of a batch's images that carry the perturbation in the
      outer loss; at least one does.
  """

  rounds: int = 5
  batch_size: int = 256
  lr: float = 1e-4
  weight_decay: float = 0.0
  inner_lr: float = 10.0
  penalty: float = 0.001
  map_lr: float = 0.1
  num_fixed_point: int = 5
  patch_ratio: float = 0.01


class IBauState(NamedTuple):
  """State between steps.

  Attributes:
    model: the network; its statistics never move.
    opt_state: AMSGrad's moments.
    delta: the perturbation [h, w, c] in normalized units.
    kept_images: [batch_size, h, w, c], of the map; filled from the top.
    kept_labels: int32 [batch_size].
    extra: what came before.
  """

  model: types.ModelState
  opt_state: Any
  delta: jax.Array
  kept_images: jax.Array
  kept_labels: jax.Array
  extra: types.PyTree


class Losses(NamedTuple):
  """The two losses as functions of what they are differentiated by.

  Attributes:
    inner: (delta, params, images, labels) -> scalar to minimize over delta.
    outer: (delta, params, images, labels, is_patched) -> scalar.
  """

  inner: Any
  outer: Any


def i_bau(
  classifier: types.Classifier, hp: IBauHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of one phase, 'unlearn', that reads 'clean'; passes of even
    number seek the perturbation, the others unlearn it. Its extra is
    {'delta': [h, w, c]}, the last perturbation, in [0, 1] units.

  Raises:
    ValueError: for a count that is not positive, a negative rate or a ratio
      that is none.
  """
  hp = hp or IBauHParams()
  _check(hp)
  optimizer = optim.amsgrad(optim.constant(hp.lr), weight_decay=hp.weight_decay)

  def init(key: jax.Array, carry: types.Carry) -> IBauState:
    del key
    shape = classifier.info.image_shape
    return IBauState(
      model=carry.model,
      opt_state=optimizer.init(carry.model.params),
      delta=jnp.zeros(shape),
      kept_images=jnp.zeros((hp.batch_size, *shape)),
      kept_labels=jnp.zeros(hp.batch_size, jnp.int32),
      extra=carry.extra,
    )

  def step(state: IBauState, batch: types.Batch, clock: types.Clock):
    # The pass is known to all models of a stack alike, so that this stays a
    # branch and does not become both.
    return jax.lax.cond(
      clock.epoch % 2 == 0,
      lambda: _seek(classifier, hp, state, batch, clock),
      lambda: _unlearn(classifier, optimizer, hp, state, batch, clock),
    )

  def finish(state: IBauState) -> types.Carry:
    std = jnp.asarray(classifier.info.std, state.delta.dtype)
    delta = state.delta * std[None, None]
    return types.Carry(model=state.model, extra={**state.extra, 'delta': delta})

  phase = types.Phase(
    'unlearn',
    init,
    step,
    finish,
    num_epochs=2 * hp.rounds,
    # Seeking takes one, unlearning one and those of the fixed point.
    grad_passes=(hp.num_fixed_point + 3) // 2,
    batch_size=hp.batch_size,
    reads='clean',
    augment=True,
    drop_last=False,
  )
  return types.Defense(phases=(phase,), info='i_bau')


def losses(
  classifier: types.Classifier,
  batch_stats: types.PyTree,
  penalty: float | jax.Array,
) -> Losses:
  """The inner and the outer loss, frozen-BN.

  Args:
    classifier: the network.
    batch_stats: its running statistics.
    penalty: weight of ‖δ‖².

  Returns:
    Both; perturbations [h, w, c] are in normalized units.
  """

  def cross_entropy(params, images, labels):
    model = types.ModelState(params=params, batch_stats=batch_stats)
    logits, _ = classifier.apply(model, images)
    return training.cross_entropy(logits, labels)

  def in_pixels(delta):
    std = jnp.asarray(classifier.info.std, delta.dtype)
    return (delta * std[None, None])[None]

  def inner(delta, params, images, labels):
    value = cross_entropy(params, images + in_pixels(delta), labels)
    return penalty * jnp.sum(delta**2) - value

  def outer(delta, params, images, labels, is_patched):
    shift = jnp.where(is_patched[:, None, None, None], in_pixels(delta), 0)
    return cross_entropy(params, images + shift, labels)

  return Losses(inner, outer)


def _seek(classifier, hp, state: IBauState, batch, clock):
  """One descent step of the perturbation; the model stays."""
  is_first = clock.step % _per_epoch(clock) == 0
  delta = jnp.where(is_first, 0, state.delta)
  logits, _ = classifier.apply(state.model, batch['image'])
  labels = jnp.argmax(logits, -1)
  inner = losses(classifier, state.model.batch_stats, hp.penalty).inner
  value, grad = jax.value_and_grad(inner)(
    delta, state.model.params, batch['image'], labels
  )
  delta = delta - hp.inner_lr * grad
  return state._replace(delta=delta), _metrics(value, delta)


def _unlearn(classifier, optimizer, hp, state: IBauState, batch, clock):
  """One step along the hypergradient; the perturbation stays."""
  size = batch['image'].shape[0]
  is_first = clock.step == _per_epoch(clock)  # of the first outer pass
  keep = lambda kept, new: kept.at[:size].set(
    jnp.where(is_first, new, kept[:size])
  )
  state = state._replace(
    kept_images=keep(state.kept_images, batch['image']),
    kept_labels=keep(state.kept_labels, batch['label']),
  )
  grad, info = unlearning_gradient(
    classifier,
    hp,
    state.model,
    state.delta,
    {**batch, 'is_patched': _patched(clock.key, size, hp)},
    {'image': state.kept_images[:size], 'label': state.kept_labels[:size]},
  )
  updates, opt_state = optimizer.update(
    grad, state.opt_state, state.model.params, clock=clock
  )
  params = optax.apply_updates(state.model.params, updates)
  model = types.ModelState(params=params, batch_stats=state.model.batch_stats)
  state = state._replace(model=model, opt_state=opt_state)
  return state, _metrics(info['loss'], state.delta)


def unlearning_gradient(
  classifier: types.Classifier,
  hp: IBauHParams,
  model: types.ModelState,
  delta: jax.Array,
  batch: types.Batch,
  kept: types.Batch,
) -> tuple[types.PyTree, dict[str, jax.Array]]:
  """The hypergradient of the outer loss with respect to all parameters.

  Args:
    classifier: the network.
    hp: `penalty`, `map_lr` and `num_fixed_point`.
    model: its weights and statistics.
    delta: [h, w, c] in normalized units.
    batch: 'image', 'label' and 'is_patched' bool [b].
    kept: 'image' and 'label' of the inner loss in the map.

  Returns:
    See `optim.hypergradient`.
  """
  both = losses(classifier, model.batch_stats, hp.penalty)

  def fixed_point_map(delta, params):
    grad = jax.grad(both.inner)(delta, params, kept['image'], kept['label'])
    return delta - hp.map_lr * grad

  def outer(delta, params):
    return both.outer(
      delta, params, batch['image'], batch['label'], batch['is_patched']
    )

  return optim.hypergradient(
    fixed_point_map, outer, delta, model.params, num_steps=hp.num_fixed_point
  )


def _patched(key, size: int, hp: IBauHParams) -> jax.Array:
  """Which images carry the perturbation, bool [size]."""
  draws = jax.random.bits(keys.stream(key, 'patch'), (size,))
  rank = jnp.argsort(jnp.argsort(draws))
  # A hair above the product, so that 0.01 · 100 counts as one.
  return rank < jnp.maximum(1, jnp.floor(hp.patch_ratio * size + 1e-4))


def _per_epoch(clock: types.Clock) -> int:
  return clock.num_steps // clock.num_epochs


def _metrics(loss, delta) -> types.Metrics:
  return {'loss': loss, 'delta_norm': jnp.sqrt(jnp.sum(delta**2))}


def _check(hp: IBauHParams) -> None:
  checks.positive(
    rounds=hp.rounds,
    batch_size=hp.batch_size,
    num_fixed_point=hp.num_fixed_point,
  )
  checks.non_negative(
    lr=hp.lr, inner_lr=hp.inner_lr, penalty=hp.penalty, map_lr=hp.map_lr
  )
  checks.fraction(patch_ratio=hp.patch_ratio)
