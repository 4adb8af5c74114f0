"""Arrays of a data set, honest subsets of them, and the defender's reserve."""

from typing import Any, NamedTuple

import jax
import numpy as np

from bdjax import checks, types

SAMPLERS = ('random', 'class_balanced')


class Split(NamedTuple):
  """Images and labels in a fixed order; positions are identities.

  Attributes:
    images: uint8 [N, h, w, c], possibly memory-mapped and then read-only.
    labels: int32 [N].
  """

  images: np.ndarray
  labels: np.ndarray


class Dataset(NamedTuple):
  """A data set in memory.

  Attributes:
    spec: static facts.
    train: training split.
    test: test split.
  """

  spec: types.DataSpec
  train: Split
  test: Split


def checked(
  images: Any, labels: Any, *, source: str, spec: types.DataSpec | None = None
) -> Split:
  """Builds a split from arrays, or says what is wrong with them.

  Args:
    images: uint8 [N, h, w, c].
    labels: integers [N].
    source: where they came from, for messages.
    spec: shape and number of classes they must agree with, if known.

  Returns:
    The split, its labels as int32.

  Raises:
    TypeError: for images that are not uint8 or labels that are not integers.
    ValueError: for wrong shapes, lengths or labels out of range.
  """
  _check_images(images, source, spec)
  _check_labels(labels, len(images), source, spec)
  return Split(images, np.asarray(labels, np.int32))


def _check_images(images, source: str, spec: types.DataSpec | None) -> None:
  """Type, rank and, if known, shape of images."""
  if images.dtype != np.uint8:
    raise TypeError(
      f'{source}: images have dtype {images.dtype}; data sets hold uint8. '
      'Convert floats in [0, 1] with np.round(255 * x).astype(np.uint8).'
    )
  if images.ndim != 4 or not images.shape[0]:
    raise ValueError(
      f'{source}: images have shape {images.shape}; expected [N, h, w, c] '
      'with N > 0. Give gray images a channel axis, x[..., None].'
    )
  if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
    raise ValueError(
      f'{source}: images have shape {images.shape}, which looks like '
      '[N, c, h, w]; transpose with x.transpose(0, 2, 3, 1).'
    )
  if spec and images.shape[1:] != spec.image_shape:
    raise ValueError(
      f'{source}: images are {images.shape[1:]} but {spec.name} is '
      f'{spec.image_shape}; resize them, or load them as a data set of your '
      "own under the name 'arrays'."
    )


def _check_labels(
  labels, num_images: int, source: str, spec: types.DataSpec | None
) -> None:
  """Type, length and range of labels."""
  if not np.issubdtype(labels.dtype, np.integer):
    raise TypeError(
      f'{source}: labels have dtype {labels.dtype}; expected integers, '
      'convert with y.astype(np.int32).'
    )
  if labels.shape != (num_images,):
    raise ValueError(
      f'{source}: labels have shape {labels.shape} for {num_images} images; '
      f'expected ({num_images},), one class number per image.'
    )
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or (spec and high >= spec.num_classes):
    last = f'{spec.num_classes - 1} for {spec.name}' if spec else 'n - 1'
    raise ValueError(
      f'{source}: labels run from {low} to {high}; class numbers are 0 to '
      f'{last}. Renumber them from 0.'
    )


def subset(split: Split, n: int | None, *, name: str = 'n') -> Split:
  """The first n of a fixed, stratified permutation, in the split's own order.

  Guarantees:
    - nested: a smaller subset is contained in every larger one
    - stratified: class shares are those of the split up to rounding, hence
      equal (to within one image) where the split is balanced
    - `n = N` and `n = None` give the split unchanged

  Args:
    split: images [N, h, w, c] and labels [N].
    n: number of examples to keep; None keeps all.
    name: name of the caller's argument, for messages.

  Returns:
    A split of n examples; images are copied out of a memory map.

  Raises:
    ValueError: if n is not in 1 … N.
  """
  total = len(split.labels)
  if n is None or n == total:
    return split
  if not 0 < n < total:
    raise ValueError(
      f'`{name}={n}` is not in 1 … {total}, the examples there are; use None '
      'for all of them.'
    )
  index = np.sort(_stratified_order(split.labels)[:n])
  return Split(np.asarray(split.images[index]), split.labels[index])


def _stratified_order(labels: np.ndarray) -> np.ndarray:
  """A permutation whose every prefix has nearly the classes' own shares."""
  # The legacy generator's stream is frozen, so subsets never change.
  shuffled = np.random.RandomState(0).permutation(len(labels))
  by_class = labels[shuffled]
  counts = np.bincount(by_class)
  starts = np.cumsum(counts) - counts
  rank = np.empty(len(labels), np.int64)
  rank[np.argsort(by_class, kind='stable')] = np.arange(len(labels))
  quantile = (rank - starts[by_class] + 0.5) / counts[by_class]
  return shuffled[np.lexsort((by_class, quantile))]


def reserve_clean(
  key: jax.Array,
  labels: np.ndarray,
  ratio: float,
  *,
  sampler: str = 'random',
) -> np.ndarray:
  """Draws the defender's clean subset, without replacement.

  'random' takes ⌊N·r⌋ of all N examples, 'class_balanced' takes ⌊N·r/C⌋ of
  each of the C classes that occur. Both follow one permutation made from the
  key, so with the same key a smaller reserve is part of a larger one.

  Args:
    key: typed key; the same key gives the same reserve.
    labels: class numbers [N] of the training set.
    ratio: share of the training set, in (0, 1].
    sampler: 'random' or 'class_balanced'.

  Returns:
    Positions in the training set, int32, ascending. Keep them with the result.

  Raises:
    TypeError: for a legacy key.
    ValueError: if the ratio is no fraction.
    Unsupported: if it is too small for a single example (per class), or asks
      more of a class than there is.

  Example:
    >>> import jax, numpy as np
    >>> labels = np.arange(100) % 4
    >>> index = reserve_clean(jax.random.key(0), labels, 0.2)
    >>> index.shape
    (20,)
  """
  checks.typed_key(key=key)
  checks.fraction(clean_ratio=ratio)
  checks.one_of(SAMPLERS, sampler=sampler)
  labels = np.asarray(labels)
  order = np.asarray(jax.random.permutation(key, len(labels)))
  if sampler == 'random':
    chosen = order[: _share(len(labels), ratio, 1)]
  else:
    chosen = _first_of_each_class(order, labels, ratio)
  return np.sort(chosen).astype(np.int32)


def _share(total: int, ratio: float, parts: int) -> int:
  """⌊total·ratio/parts⌋, not upset by 0.29 · 100 = 28.999…; at least 1."""
  n = int(np.floor(total * ratio / parts + 1e-9))
  if n < 1:
    unit = 'example' if parts == 1 else f'example in each of {parts} classes'
    raise checks.Unsupported(
      f'`clean_ratio={ratio}` of {total} examples is less than one {unit}; use '
      f'at least {parts / total:g}.'
    )
  return n


def _first_of_each_class(order, labels, ratio: float) -> np.ndarray:
  """The first ⌊N·r/C⌋ members of each class along `order`."""
  classes, counts = np.unique(labels, return_counts=True)
  n = _share(len(labels), ratio, len(classes))
  if n > counts.min():
    rare, most = classes[counts.argmin()], counts.min()
    raise checks.Unsupported(
      f'`clean_ratio={ratio}` asks for {n} examples per class '
      f"('class_balanced'), but class {rare} has {most}; use a ratio up to "
      f"{most * len(classes) / len(labels):.4g} or sampler='random'."
    )
  return np.concatenate([order[labels[order] == c][:n] for c in classes])


def exclude(num_examples: int, index: np.ndarray) -> np.ndarray:
  """Positions 0 … num_examples − 1 that are not in `index`, ascending int32.

  For a reserve that the attacker must not train on, or one drawn from the test
  split, whose images are then left out of the evaluation.
  """
  keep = np.ones(num_examples, bool)
  keep[np.asarray(index)] = False
  return np.flatnonzero(keep).astype(np.int32)
