"""Mixing: attacks of a trainer who poisons some slots of every batch.

There is no fixed poisoned subset. The first slots of a batch are poisoned, the
next ones are covers, images with a trigger that is not the attack's and with
the label they have; the rest stays clean. Epochs are shuffled, so that the
slots hold other images each time.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8

from bdjax import checks, data, keys, types
from bdjax.attacks import poisoning
from bdjax.attacks import relabel as relabel_lib
from bdjax.attacks.triggers import levels


@types.hparams
class SlotHParams:
  """Hyper-parameters that attacks of this kind share; they are all static.

  Attributes:
    label_mode: 'all2one' or 'all2all'.
    target_label: class the trigger leads to (all2one).
    label_shift: classes further on that the trigger leads to (all2all).
    poison_ratio: poisoned slots / batch, in (0, 1].
    quantize_mode: how triggered test images become bytes, 'trunc' | 'round';
      'none' = they stay floats.
  """

  label_mode: str = 'all2one'
  target_label: int = 0
  label_shift: int = 1
  poison_ratio: float = dataclasses.field(
    default=0.1, metadata={'static': True}
  )
  quantize_mode: str = 'trunc'


@types.hparams
class AugmentHParams:
  """Those of attacks with an augmentation of their own; all static.

  Attributes:
    random_crop: padding of the crop, in pixels of images from 32 a side;
      smaller ones get less in proportion.
    random_rotation: largest angle of the rotation, in degrees.
    aug_shared_per_batch: crop, rotate and flip a batch as a whole, with the
      nearest pixels, as BackdoorBench does.
  """

  random_crop: int = 5
  random_rotation: float = dataclasses.field(
    default=10.0, metadata={'static': True}
  )
  aug_shared_per_batch: bool = False


@types.hparams
class MixHParams(AugmentHParams, SlotHParams):
  """Those of attacks that augment batches after poisoning; all static."""


class Slots(NamedTuple):
  """How many slots of a batch are what; static.

  Attributes:
    num_poisoned: poisoned ones, the first of the batch.
    num_cover: covers, the next ones.
    rate: probability that they are used in a step; 1 unless a batch's share of
      poison is less than one image.
    loyal: whether covers are used only where poison is.
  """

  num_poisoned: int
  num_cover: int
  rate: float = 1.0
  loyal: bool = True


def slots(
  size: int,
  poison_ratio: float,
  *,
  per_poisoned: float | None = None,
  cover_ratio: float = 0.0,
) -> Slots:
  """The slots of batches of a size: int(p·B) are poisoned.

  Where p·B < 1, one slot is poisoned with probability p·B.

  Args:
    size: images in a batch, B.
    poison_ratio: p, a Python number.
    per_poisoned: covers per poisoned slot, which go along with it.
    cover_ratio: covers / batch in place of that, in every step.

  Returns:
    The slots; covers that find no room are left out.

  Example:
    >>> slots(128, 0.1, per_poisoned=2.0)
    Slots(num_poisoned=12, num_cover=24, rate=1.0, loyal=True)
    >>> slots(128, 0.005)
    Slots(num_poisoned=1, num_cover=0, rate=0.64, loyal=False)
  """
  share = poison_ratio * size
  number = max(int(share), 1)
  loyal = per_poisoned is not None
  covers = int(per_poisoned * number) if loyal else int(cover_ratio * size)
  return Slots(number, min(covers, size - number), min(share, 1.0), loyal)


def kinds(plan: Slots, size: int, key: jax.Array) -> Int8[Array, ' b']:
  """What each slot of a batch is, drawn anew for a step.

  Args:
    plan: from `slots`.
    size: images in the batch.
    key: typed key of the step.

  Returns:
    int8 [b], CLEAN, POISONED or COVER.
  """
  poisoned = jnp.asarray(plan.rate >= 1)
  if plan.rate < 1:
    poisoned = jax.random.bernoulli(key, plan.rate)
  cover = poisoned if plan.loyal else jnp.asarray(True)
  slot = jnp.arange(size)
  first, last = plan.num_poisoned, plan.num_poisoned + plan.num_cover
  kind = jnp.where((slot < first) & poisoned, types.POISONED, types.CLEAN)
  is_cover = (slot >= first) & (slot < last) & cover
  return jnp.where(is_cover, types.COVER, kind).astype(jnp.int8)


def mix(
  batch: types.Batch,
  plan: Slots,
  key: jax.Array,
  *,
  poisoned: Callable[[slice], jax.Array],
  relabel: Callable[[jax.Array], jax.Array],
  cover: Callable[[slice], jax.Array] | None = None,
) -> types.Batch:
  """Fills the slots of a batch.

  Args:
    batch: clean.
    plan: from `slots`.
    key: typed key that decides whether a single slot is used.
    poisoned: rows -> their images with the trigger.
    relabel: labels -> labels of poisoned slots.
    cover: rows -> their images with another one; None where there are none.

  Returns:
    The batch with 'kind', int8 [b]; clean rows are bit-identical.
  """
  images, labels = batch['image'], batch['label']
  kind = kinds(plan, len(labels), key)
  first, last = plan.num_poisoned, plan.num_poisoned + plan.num_cover
  parts = [poisoned(slice(0, first))]
  if plan.num_cover and cover is not None:
    parts.append(cover(slice(first, last)))
  return batch | {
    'image': fill(images, kind, parts),
    'label': jnp.where(kind == types.POISONED, relabel(labels), labels),
    'kind': kind,
  }


def fill(
  images: jax.Array, kind: jax.Array, parts: list[jax.Array]
) -> jax.Array:
  """Images with those of the first slots replaced where they are not clean.

  Args:
    images: clean, [b, h, w, c].
    kind: int8 [b], from `kinds`.
    parts: images of the first slots, one array after the other.

  Returns:
    [b, h, w, c].
  """
  rest = images[sum(map(len, parts)) :]
  changed = (kind != types.CLEAN)[:, None, None, None]
  return jnp.where(changed, jnp.concatenate([*parts, rest]), images)


def draw_others(
  key: jax.Array, images: jax.Array | np.ndarray, number: int
) -> jax.Array:
  """Training images that lend their trigger to test images.

  Args:
    key: typed key.
    images: uint8 [N, h, w, c].
    number: how many, at most N.

  Returns:
    uint8 [number, h, w, c].
  """
  rows = jax.random.permutation(key, len(images))[:number]
  if checks.is_concrete(rows):
    # A training set on disk is not loaded as a whole.
    return jnp.asarray(np.asarray(images[np.asarray(rows)]))
  return jnp.asarray(images)[rows]


def pick_others(
  others: jax.Array, key: jax.Array, index: jax.Array
) -> jax.Array:
  """For each example one of `draw_others`, whatever the batch.

  Args:
    others: uint8 [r, h, w, c].
    key: typed key.
    index: int [b], names of the examples.

  Returns:
    Float images [b, h, w, c] in [0, 1].
  """
  pick = lambda key: jax.random.randint(key, (), 0, len(others))
  rows = jax.vmap(pick)(keys.per_example(key, index))
  return levels.to_image(others[rows])


class Views(NamedTuple):
  """What an attack makes of images; its trigger does not learn.

  Attributes:
    init: (key, uint8 images of the training set) -> params.
    poisoned: (params, batch, rows, key) -> images of those rows with the
      trigger, as the model is trained on them.
    cover: the same with another trigger.
    stamp: (params, images, key, index) -> images with the trigger.
    cross: the same with another one.
  """

  init: Callable[..., types.PyTree]
  poisoned: Callable[..., jax.Array]
  cover: Callable[..., jax.Array]
  stamp: Callable[..., jax.Array]
  cross: Callable[..., jax.Array]


def from_views(
  name: str,
  spec: types.DataSpec,
  hp: MixHParams,
  views: Views,
  *,
  per_poisoned: float | None = None,
  cover_ratio: float = 0.0,
) -> types.Attack:
  """Makes an attack whose covers teach a model to ignore other triggers.

  Args:
    name: registry key.
    spec: of the data set.
    hp: the shared hyper-parameters, or an attack's own.
    views: what images become.
    per_poisoned: covers per poisoned slot.
    cover_ratio: covers / batch in place of that.

  Returns:
    The attack; triggered test images are stored as `quantize_mode` says.

  Raises:
    ValueError: if a hyper-parameter is out of range.
  """
  share = cover_ratio
  if per_poisoned is not None:
    share = per_poisoned * hp.poison_ratio
  rule, info = describe(name, spec, hp, share)
  size_of = lambda batch: slots(
    len(batch['label']),
    hp.poison_ratio,
    per_poisoned=per_poisoned,
    cover_ratio=cover_ratio,
  )

  def init_fn(key, images, labels):
    checks.typed_key(key=key)
    poisoning.check_training_set(images, labels, spec.image_shape)
    return types.AttackState(
      trigger=views.init(keys.stream(key, 'trigger'), images),
      kind=jnp.full(len(labels), types.CLEAN, jnp.int8),
    )

  def poison_fn(state, batch, key):
    check_images(batch['image'], key, spec)
    of = lambda view, stream: (
      lambda rows: view(state.trigger, batch, rows, keys.stream(key, stream))
    )
    return mix(
      batch,
      size_of(batch),
      keys.stream(key, 'slots'),
      poisoned=of(views.poisoned, 'poisoned'),
      cover=of(views.cover, 'cover'),
      relabel=rule.apply,
    )

  def stored(view):
    def stamp_fn(state, images, key, index):
      check_images(images, key, spec)
      changed = view(state.trigger, images, key, jnp.asarray(index))
      return levels.stored(changed, hp.quantize_mode)

    return stamp_fn

  return types.Attack(
    init=init_fn,
    poison=poison_fn,
    stamp=stored(views.stamp),
    relabel=rule.apply,
    update=poisoning.keep_trigger,
    objective=poisoning.cross_entropy,
    info=info,
    cross=stored(views.cross),
    augment=augment_fn(spec, hp),
  )


def describe(
  name: str, spec: types.DataSpec, hp: SlotHParams, cover_ratio: float
) -> tuple[relabel_lib.Relabel, types.AttackInfo]:
  """The label rule and the static facts of an attack of this kind.

  Args:
    name: registry key.
    spec: of the data set.
    hp: the shared hyper-parameters.
    cover_ratio: covers / batch.

  Returns:
    (rule, facts).

  Raises:
    ValueError: if a hyper-parameter is out of range, or poison and covers do
      not fit into a batch.
  """
  checks.fraction(poison_ratio=hp.poison_ratio)
  checks.one_of(levels.STORED_MODES, quantize_mode=hp.quantize_mode)
  if hp.poison_ratio + cover_ratio > 1:
    raise ValueError(
      f'`poison_ratio={hp.poison_ratio}` and covers on {cover_ratio:g} of a '
      'batch exceed it; lower one of them.'
    )
  rule = relabel_lib.make_relabel(
    hp.label_mode, spec.num_classes, hp.target_label, hp.label_shift
  )
  return rule, types.AttackInfo(
    name=name,
    label_mode=rule.label_mode,
    target_label=rule.target_label,
    poison_ratio=hp.poison_ratio,
    fixed_subset=False,
    cover_ratio=cover_ratio or None,
  )


def augment_fn(
  spec: types.DataSpec, hp: AugmentHParams, rate: float | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The augmentation of such attacks.

  Args:
    spec: of the data set.
    hp: hyper-parameters.
    rate: probability of crop and of rotation; None = 0.8 and 0.5.

  Returns:
    (images, keys [b]) -> images.
  """
  rates = {} if rate is None else {'crop_rate': rate, 'rotation_rate': rate}
  return data.post_tensor_fn(
    spec,
    crop=hp.random_crop,
    rotation=hp.random_rotation,
    shared=hp.aug_shared_per_batch,
    **rates,
  )


def check_images(
  images: jax.Array, key: jax.Array, spec: types.DataSpec
) -> None:
  """Refuses keys and images that the attack was not made for."""
  checks.typed_key(key=key)
  checks.unit_images(images=images)
  poisoning.check_shape(images, spec.image_shape)
