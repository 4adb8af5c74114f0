"""Data poisoning: an attack made of a trigger, a label rule and a selection.

A fixed subset of the training images carries the trigger before augmentation,
as if it had been on disk; the rest is untouched. The trigger does not learn.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, keys, training, types
from bdjax.attacks import relabel as relabel_lib
from bdjax.attacks import selection as selection_lib


@types.hparams
class PoisonHParams:
  """Hyper-parameters that all poisoning attacks share; they are all static.

  Attributes:
    label_mode: 'all2one' or 'all2all'.
    target_label: class the trigger leads to (all2one).
    label_shift: classes further on that the trigger leads to (all2all).
    poison_ratio: poisoned / whole training set, in (0, 1].
    num_poison: number of poisoned examples; None = from the ratio.
    clean_label: poison the target class alone and leave its labels.
    index_rng: 'jax' (from the key) or 'numpy_legacy' (from `seed`, as
      published runs drew).
    seed: of 'numpy_legacy'.
  """

  label_mode: str = 'all2one'
  target_label: int = 0
  label_shift: int = 1
  poison_ratio: float = dataclasses.field(
    default=0.1, metadata={'static': True}
  )
  num_poison: int | None = None
  clean_label: bool = False
  index_rng: str = 'jax'
  seed: int = 0


def cross_entropy(
  state: types.AttackState,
  classifier: types.Classifier,
  model: types.ModelState,
  batch: types.Batch,
  key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, types.ModelState]]:
  """Plain training: the mean cross-entropy of the batch as it is.

  Args:
    state: not used.
    classifier: the network.
    model: its state.
    batch: poisoned and augmented already.
    key: not used.

  Returns:
    (loss, (logits [b, n], state with new running statistics)).
  """
  del state, key
  logits, model = classifier.apply(model, batch['image'], train=True)
  return training.cross_entropy(logits, batch['label']), (logits, model)


def from_trigger(
  trigger: types.Trigger,
  relabel: relabel_lib.Relabel,
  selection: selection_lib.Selection,
  image_shape: tuple[int, int, int],
  *,
  test_trigger: types.Trigger | None = None,
  objective: Callable[..., tuple[jax.Array, object]] = cross_entropy,
) -> types.Attack:
  """Makes a poisoning attack of any trigger.

  Args:
    trigger: what poisoned training images carry; its `info` is the attack's
      name.
    relabel: the label rule.
    selection: which examples; with `only_class` the attack is clean-label.
    image_shape: (h, w, c) of the images.
    test_trigger: what `stamp` applies, of the same parameters, where testing
      differs from training; its `init` is not called.
    objective: the training loss, by the contract of `types.Attack`.

  Returns:
    The attack; `poison` adds 'kind', int8 [b], to the batch. Examples whose
    index lies outside of the training set are clean.

  Raises:
    ValueError: if a clean-label attack has no single target class.

  Example:
    >>> dot = types.Trigger(
    ...   init=lambda key: {}, info='dot',
    ...   apply=lambda params, image, key: image.at[0, 0].set(1.0))
    >>> attack = from_trigger(
    ...   dot, relabel_lib.all2one(0, num_classes=4),
    ...   selection_lib.Selection(poison_ratio=0.25), (8, 8, 3))
    >>> state = attack.init(
    ...   jax.random.key(0), np.zeros((8, 8, 8, 3), np.uint8), np.ones(8, int))
    >>> int(state.kind.sum())
    2
  """
  clean_label = selection.only_class is not None
  if clean_label and selection.only_class != relabel.target_label:
    raise ValueError(
      f'A clean-label attack poisons its target class, but `only_class='
      f'{selection.only_class}` and the target is {relabel.target_label}; use '
      "label_mode='all2one' and the same class."
    )

  def init_fn(key, images, labels):
    checks.typed_key(key=key)
    check_training_set(images, labels, image_shape)
    return types.AttackState(
      trigger=trigger.init(keys.stream(key, 'trigger')),
      kind=selection_lib.draw(selection, keys.stream(key, 'selection'), labels),
    )

  def poison_fn(state, batch, key):
    images, labels, index = batch['image'], batch['label'], batch['index']
    kind = state.kind.at[index].get(mode='fill', fill_value=types.CLEAN)
    poisoned = kind == types.POISONED
    stamped = _stamp(trigger, image_shape, state.trigger, images, key, index)
    relabelled = labels if clean_label else relabel.apply(labels)
    return batch | {
      'image': jnp.where(poisoned[:, None, None, None], stamped, images),
      'label': jnp.where(poisoned, relabelled, labels),
      'kind': kind,
    }

  def stamp_fn(state, images, key, index):
    used = test_trigger or trigger
    return _stamp(used, image_shape, state.trigger, images, key, index)

  return types.Attack(
    init=init_fn,
    poison=poison_fn,
    stamp=stamp_fn,
    relabel=relabel.apply,
    update=keep_trigger,
    objective=objective,
    info=_describe(trigger.info, relabel, selection),
  )


def from_hparams(
  trigger: types.Trigger,
  spec: types.DataSpec,
  hp: PoisonHParams,
  *,
  test_trigger: types.Trigger | None = None,
) -> types.Attack:
  """`from_trigger` with rule and selection from hyper-parameters.

  Args:
    trigger: as in `from_trigger`.
    spec: shape and classes of the data set.
    hp: the shared hyper-parameters, or an attack's own.
    test_trigger: as in `from_trigger`.

  Returns:
    The attack.

  Raises:
    ValueError: if a hyper-parameter is out of range.
  """
  relabel = relabel_lib.make_relabel(
    hp.label_mode, spec.num_classes, hp.target_label, hp.label_shift
  )
  if hp.clean_label and relabel.target_label is None:
    raise ValueError(
      f"`clean_label=True` does not go with `label_mode='{hp.label_mode}'`: "
      "labels that stay can mean one target only; use 'all2one'."
    )
  selection = selection_lib.Selection(
    poison_ratio=hp.poison_ratio,
    num_poison=hp.num_poison,
    only_class=hp.target_label if hp.clean_label else None,
    index_rng=hp.index_rng,
    seed=hp.seed,
  )
  return from_trigger(
    trigger, relabel, selection, spec.image_shape, test_trigger=test_trigger
  )


def _stamp(trigger, image_shape, params, images, key, index):
  """Applies a trigger to images [b, h, w, c], keyed by example."""
  checks.typed_key(key=key)
  checks.unit_images(images=images)
  check_shape(images, image_shape)
  stamp_one = jax.vmap(trigger.apply, in_axes=(None, 0, 0))
  return stamp_one(params, images, keys.per_example(key, index))


def keep_trigger(
  state: types.AttackState,
  classifier: types.Classifier,
  model: types.ModelState,
  batch: types.Batch,
  key: jax.Array,
) -> tuple[types.AttackState, types.Metrics]:
  """The `update` of a trigger that does not learn.

  Args:
    state: stays as it is.
    classifier: not used, and neither is the rest.
    model: its state.
    batch: poisoned.
    key: typed key.

  Returns:
    (state, no metrics).
  """
  del classifier, model, batch, key
  return state, {}


def _describe(name: str, relabel, selection) -> types.AttackInfo:
  """The attack's static facts."""
  counted = selection.num_poison is not None
  return types.AttackInfo(
    name=name,
    label_mode=relabel.label_mode,
    target_label=relabel.target_label,
    poison_ratio=None if counted else selection.poison_ratio,
    clean_label=selection.only_class is not None,
  )


def check_shape(images, image_shape) -> None:
  """Refuses images that the trigger was not made for."""
  if images.ndim != 4 or images.shape[1:] != tuple(image_shape):
    raise ValueError(
      f'The trigger was made for images of shape {tuple(image_shape)}, got '
      f'{images.shape}; make the attack with the DataSpec of these images.'
    )


def check_training_set(images, labels, image_shape) -> None:
  """Refuses what is no labelled set of byte images."""
  checks.byte_images(images=images)
  check_shape(images, image_shape)
  if np.shape(labels) != images.shape[:1]:
    raise ValueError(
      f'`labels` has shape {np.shape(labels)}; expected ({images.shape[0]},), '
      'one per image.'
    )
