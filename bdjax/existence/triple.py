"""The existence coefficient of one (backdoored, clean, defended) triple."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bdjax import checks, keys, tree, types

# Members: the package re-exports a function under the module's name.
from bdjax.existence.bec import bec, layer_cka, reference


def draw_indices(
  key: jax.Array,
  num_images: int,
  *,
  num_tac: int = 2200,
  num_cka: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
  """Fixed index sets, to be drawn once and stored with the results.

  Args:
    key: typed key.
    num_images: size of the set of pairs, without images of the target class.
    num_tac: pairs that rank the neurons.
    num_cka: images that measure similarity, a subset of the pairs.

  Returns:
    int32 [num_tac] and int32 [num_cka], without repetition.

  Raises:
    ValueError: if there are fewer images than are to be drawn.
  """
  checks.typed_key(key=key)
  checks.positive(num_tac=num_tac, num_cka=num_cka)
  for name, wanted, available in (
    ('num_tac', num_tac, num_images),
    ('num_cka', num_cka, num_tac),
  ):
    if wanted > available:
      raise ValueError(
        f'`{name}={wanted}` images are to be drawn from {available}; pass '
        f'{name}={available} or fewer, the same number for all models.'
      )
  bits = jax.random.bits(keys.stream(key, 'bec'), (num_images,))
  order = np.argsort(np.asarray(bits), kind='stable').astype(np.int32)
  return order[:num_tac], order[:num_cka]


def measure(
  classifier: types.Classifier,
  attacked: types.ModelState,
  clean: types.ModelState | None,
  defended: types.ModelState,
  images,
  triggered,
  *,
  key: jax.Array,
  num_tac: int = 2200,
  num_cka: int = 500,
  p: float = 0.1,
  taps: Sequence[str] | None = None,
  debiased: bool = False,
  batch_size: int = 250,
  defended_classifier: types.Classifier | None = None,
) -> dict[str, Any]:
  """The coefficient of one triple of models, with all that went into it.

  Args:
    classifier: the model of the attack and of the clean model.
    attacked: backdoored weights.
    clean: weights of a model trained on clean data.
    defended: weights of the defended model.
    images: test images [N, h, w, c] outside of the target class, uint8 or
      float in [0, 1].
    triggered: the same images with the trigger.
    key: draws the pairs and the images; one key for all compared models.
    num_tac: pairs that rank the neurons.
    num_cka: images that measure similarity.
    p: share of channels kept per layer.
    taps: layers, in order; None = the convolutions of the stages.
    debiased: whether HSIC is estimated without bias.
    batch_size: images per forward pass; does not change the result.
    defended_classifier: the defended model as deployed; None = `classifier`.

  Returns:
    Host values: those of `bec`, and p, n, taps, debiased, cka_defended,
    cka_clean, dead_layer [L], tac, tac_relative, idx per tap, idx_tac and
    idx_cka into `images`.

  Raises:
    ValueError: without a clean model, with too few images, or if a defense
      changed shapes.
  """
  if clean is None:
    raise ValueError(
      'BEC needs a clean model of the same architecture: its similarity is '
      'the zero of the scale. Train one on clean data and pass it as `clean`.'
    )
  _check_shapes(attacked, clean, 'clean')
  if defended_classifier is None:
    _check_shapes(attacked, defended, 'defended')
  idx_tac, idx_cka = draw_indices(
    key, len(images), num_tac=num_tac, num_cka=num_cka
  )
  pool = triggered[idx_cka]
  make = functools.partial(
    reference, classifier, p=p, taps=taps, batch_size=batch_size
  )
  ref = jax.jit(make)(attacked, images[idx_tac], triggered[idx_tac], pool)

  def compare(classifier):
    options = dict(debiased=debiased, batch_size=batch_size)
    return jax.jit(functools.partial(layer_cka, classifier, **options))

  compare_clean = compare(classifier)
  compare_defended = (
    compare(defended_classifier) if defended_classifier else compare_clean
  )
  of_clean = compare_clean(ref, clean, pool)
  of_defended = compare_defended(ref, defended, pool)
  arrays = dict(
    bec(of_defended.value, of_clean.value),
    cka_defended=of_defended.value,
    cka_clean=of_clean.value,
    dead_layer=of_defended.dead | of_clean.dead,
    tac=ref.tac,
    tac_relative=ref.tac_relative,
    idx=ref.indices,
    idx_tac=idx_tac,
    idx_cka=idx_cka,
  )
  return dict(
    jax.device_get(arrays), p=p, n=num_cka, taps=ref.taps, debiased=debiased
  )


def _check_shapes(attacked, other, name: str):
  """Raises where two states are not of one architecture."""
  mismatch = tree.describe_mismatch(attacked, other, 'attacked', name)
  if mismatch:
    raise ValueError(
      f'BEC compares models of one architecture, but {mismatch}; prune by '
      'masks (surgery), never by changing shapes, and pass what a defense '
      'deploys as `defended_classifier`.'
    )
