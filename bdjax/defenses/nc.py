"""NC: finds classes with too small a trigger and unlearns those triggers.

For every class t a mask m and a pattern q in pixel space are sought,

  min CE(f((1 − m)·x + m·q), t) + c · ‖m‖₁,

with a cost c that rises while the patch works and falls while it does not. A
class whose smallest ‖m‖₁ lies far below the median of all is a target.

1. Inversion, all classes side by side, over all clean images (Adam); of the
   epochs in which the patch works, the one with the smallest mask counts.
2. Anomaly index |L_t − median| / (1.4826 · MAD) of the norms L_t = ‖m_t‖₁;
   classes below the median with an index above the threshold are flagged.
3. Each clean image is put into one of two parts once. Those of the smaller
   part are stamped with a flagged patch and keep their true labels.
4. Fine-tune on both parts; with several flagged classes a stamped image takes
   one of them per step and counts once for each.
5. Where no class is flagged the model is returned as it came.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       pixel [0, 1] (inversion); weights (unlearning)
BN:          frozen-BN in the inversion, train-BN in unlearning
Guarantees:  - without a flagged class the model is bit-identical
             - masks and patterns lie in [0, 1]
             - classes do not see each other; their chunks change nothing
Divergences: - The reference augments the images of the inversion; here only
               with `augment_inversion`. It stamps before augmentation, here
               after it, as a trigger stays in place at test time.
             - It stamps from pictures stretched to full contrast and rounded
               to 8 bits, and stores the backdoored weights where it flagged a
               class; here it is the exact patch and the tuned weights.
             - Its smaller part has exactly `unlearning_ratio` of the images;
               here every image is in it with that probability.
             - Its median is the lower of two middle values; here their mean.
             - An epoch's shares are over its distinct images, not batches.
             - With fewer than five classes the index is a weak yardstick
               (`eval.is_few`).
Cost:        one forward/backward pass per class and step of the inversion,
             until it stops, memory of `chunk` of them; then plain training

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.nc(classifier, defenses.NcHParams(threshold=3.0))
  >>> [phase.name for phase in defense.phases]
  ['invert', 'unlearn']

References:
  Wang et al., Neural Cleanse: Identifying and Mitigating Backdoor Attacks in
  Neural Networks, IEEE S&P 2019.
  SCLBD/BackdoorBench: defense/nc.py
"""

from typing import Any

import jax
import jax.numpy as jnp

from bdjax import checks, eval, keys, perturb, training, tree, types


@types.hparams
class NcHParams(training.RecipeHParams):
  """Hyper-parameters of NC; the defaults are the benchmark's for CIFAR-10.

  Those of `training.RecipeHParams` are of the unlearning, on the clean set, of
  which the short last batch wraps round; those of the inversion are explained
  in `perturb.InversionHParams`.

  Attributes:
    batch_size: images per step, of the inversion too.
    inversion_epochs: passes over the clean set per class, side by side.
    inversion_lr: Adam's learning rate.
    cost: weight of ‖m‖₁ at the start.
    multiplier: factor by which that weight changes.
    success: share of images at their target that counts as a success.
    patience: epochs of the same outcome after which the weight changes.
    stop_patience: epochs without a smaller mask after which a class stops.
    augment_inversion: whether the inversion sees augmented images.
    chunk: classes inverted at a time; None = one on a CPU, else all.
    threshold: anomaly index from above which a class is flagged.
    unlearning_ratio: probability of a clean image to be one that is stamped.
  """

  batch_size: int = 256
  inversion_epochs: int = 80
  inversion_lr: float = 0.1
  cost: float = 1e-3
  multiplier: float = 2.0
  success: float = 0.98
  patience: int = 5
  stop_patience: int = 25
  augment_inversion: bool = False
  chunk: int | None = None
  threshold: float = 2.0
  unlearning_ratio: float = 0.2


def nc(
  classifier: types.Classifier, hp: NcHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of the phases 'invert' and 'unlearn', both on 'clean'. Its extra:
    mask [n, h, w, 1], pattern [n, h, w, c], norm [n], anomaly_index [n],
    flagged bool [n], model_index [], has_found bool [n].

  Raises:
    ValueError: for a non-positive count, a share outside [0, 1] or an unknown
      schedule.
  """
  hp = hp or NcHParams()
  _check(hp)
  phases = (_invert(classifier, hp), _unlearn(classifier, hp))
  return types.Defense(phases=phases, info='nc')


def nc_detector(
  classifier: types.Classifier, hp: NcHParams | None = None
) -> types.Detector:
  """The inversion alone: which classes are targets, if any.

  Args:
    classifier: the network.
    hp: hyper-parameters; those of unlearning are not used.

  Returns:
    A detector. `fit(key, classifier, state, data)` takes a `training.Feed` of
    clean images and gives what the defense leaves in its extra;
    `score(fitted, data)` ignores its data and gives float32 [n], per class the
    anomaly index of its patch, negative where the patch is larger than the
    median. The model's own score is `fitted['model_index']`.

  Raises:
    ValueError: as `nc`.
  """
  hp = hp or NcHParams()
  _check(hp)
  del classifier  # `fit` gets the one it looks at

  def fit(key, classifier, state, data):
    carry, _ = training.run_phases(
      (_invert(classifier, hp),),
      types.Carry(model=state, extra={}),
      {'clean': data},
      key,
    )
    return carry.extra

  def score(fitted, data):
    del data
    norm, index = fitted['norm'], fitted['anomaly_index']
    return jnp.where(norm > jnp.median(norm), -index, index)

  return types.Detector(fit=fit, score=score, info='nc')


def verdict(
  lanes: perturb.LaneState, threshold: float | jax.Array
) -> dict[str, jax.Array]:
  """What an inversion says of the classes.

  Args:
    lanes: searches [n], class by class.
    threshold: anomaly index from above which a class is flagged.

  Returns:
    The extra of the defense, see `nc`.
  """
  patch = jax.vmap(perturb.found_patch)(lanes)
  norm = jnp.sum(jnp.abs(patch.mask), axis=(1, 2, 3))
  return {
    'mask': patch.mask,
    'pattern': patch.pattern,
    'norm': norm,
    'anomaly_index': eval.anomaly_index(norm),
    'model_index': eval.smallest_index(norm),
    'flagged': eval.flag_small(norm, threshold),
    'has_found': jnp.isfinite(lanes.control.best_norm),
  }


def stamp_flagged(
  extra: dict[str, jax.Array],
  images: types.Images,
  is_stamped: types.Mask,
  key: jax.Array,
) -> tuple[types.Images, jax.Array]:
  """Puts a flagged patch, drawn anew, on some images.

  Args:
    extra: a `verdict`.
    images: [b, h, w, c].
    is_stamped: bool [b].
    key: of this step.

  Returns:
    Images [b, h, w, c], and their weights [b]: the number of flagged classes
    for a stamped image, 1 for another.
  """
  flagged = extra['flagged']
  # Without a flagged class any is drawn; the result is not used.
  scores = jnp.where(flagged, 0.0, -jnp.inf)
  scores = jnp.where(jnp.any(flagged), scores, 0.0)
  chosen = jax.random.categorical(key, scores, shape=is_stamped.shape)
  mask, pattern = extra['mask'][chosen], extra['pattern'][chosen]
  stamped = jnp.clip((1 - mask) * images + mask * pattern, 0, 1)
  images = jnp.where(is_stamped[:, None, None, None], stamped, images)
  count = jnp.sum(flagged).astype(images.dtype)
  return images, jnp.where(is_stamped, count, 1)


def _invert(classifier: types.Classifier, hp: NcHParams) -> types.Phase:
  """The phase that leaves the verdict in the extra."""
  search = _search(hp)

  def init(key, carry):
    del key
    lane = perturb.start_lane(classifier.info.image_shape, search)
    return carry, tree.broadcast(lane, classifier.info.num_classes)

  def step(state, batch, clock):
    carry, lanes = state
    predict = lambda images: classifier.apply(carry.model, images)[0]
    per_epoch = clock.num_steps // clock.num_epochs
    is_end = (clock.step + 1) % per_epoch == 0
    running = jnp.sum(~lanes.control.is_done)
    lanes, losses = perturb.invert_step(
      predict, lanes, batch, is_end, search, chunk=hp.chunk
    )
    is_done = lanes.control.is_done
    return (carry, lanes), {
      'loss': jnp.sum(losses) / jnp.maximum(running, 1),
      'stopped': jnp.mean(is_done.astype(jnp.float32)),
      'done': jnp.all(is_done),
    }

  def finish(state):
    carry, lanes = state
    return types.Carry(model=carry.model, extra=verdict(lanes, hp.threshold))

  return types.Phase(
    'invert',
    init,
    step,
    finish,
    num_epochs=hp.inversion_epochs,
    grad_passes=classifier.info.num_classes,
    batch_size=hp.batch_size,
    reads='clean',
    augment=hp.augment_inversion,
    drop_last=False,
    done='done',
  )


def _unlearn(classifier: types.Classifier, hp: NcHParams) -> types.Phase:
  """The phase that tunes, and goes back where nothing is flagged."""

  def start(key, carry):
    rest = {'before': carry.model, 'extra': carry.extra, 'key': key}
    rest['stats'] = carry.model.batch_stats
    return carry.model.params, rest

  def prepare(params, rest, batch, clock):
    del params
    draws = jax.vmap(jax.random.uniform)(
      keys.per_example(rest['key'], batch['index'])
    )
    images, weights = stamp_flagged(
      rest['extra'],
      batch['image'],
      draws < hp.unlearning_ratio,
      keys.stream(clock.key, 'class'),
    )
    return rest, {**batch, 'image': images, 'weight': weights}

  def loss(params, rest, batch, clock):
    del clock
    model = types.ModelState(params=params, batch_stats=rest['stats'])
    logits, new = classifier.apply(model, batch['image'], train=True)
    log_p = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_p, batch['label'][:, None], -1)[:, 0]
    weight = batch['weight']
    # A batch of stamped images alone weighs nothing where none is flagged.
    value = jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), 1)
    accuracy = training.accuracy(logits, batch['label'])
    return value, (
      {'accuracy': accuracy},
      {**rest, 'stats': new.batch_stats},
    )

  def finish(params, rest):
    tuned = types.ModelState(params=params, batch_stats=rest['stats'])
    is_flagged = jnp.any(rest['extra']['flagged'])
    model = jax.tree.map(
      lambda new, old: jnp.where(is_flagged, new, old), tuned, rest['before']
    )
    return types.Carry(model=model, extra=rest['extra'])

  length: dict[str, Any] = dict(
    num_epochs=hp.epochs, batch_size=hp.batch_size, reads='clean'
  )
  return training.fit(
    start,
    loss,
    training.optimizer(hp),
    finish=finish,
    prepare=prepare,
    name='unlearn',
    augment=True,
    drop_last=False,
    **length,
  )


def _search(hp: NcHParams) -> perturb.InversionHParams:
  return perturb.InversionHParams(
    lr=hp.inversion_lr,
    cost=hp.cost,
    multiplier=hp.multiplier,
    success=hp.success,
    patience=hp.patience,
    stop_patience=hp.stop_patience,
  )


def _check(hp: NcHParams) -> None:
  checks.positive(
    epochs=hp.epochs,
    batch_size=hp.batch_size,
    inversion_epochs=hp.inversion_epochs,
    multiplier=hp.multiplier,
    patience=hp.patience,
    stop_patience=hp.stop_patience,
    chunk=hp.chunk,
  )
  checks.non_negative(
    inversion_lr=hp.inversion_lr, cost=hp.cost, threshold=hp.threshold
  )
  checks.unit_interval(success=hp.success, unlearning_ratio=hp.unlearning_ratio)
