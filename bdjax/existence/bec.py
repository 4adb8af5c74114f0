"""BEC: how much of a backdoor's representation a defended model still holds.

Given a backdoored model f_A, a defended one f_D and a clean one f_C of the
same architecture:

1. Rank the channels of each tapped convolution by their trigger-activated
   change on f_A; the top share p are the backdoor neurons (`reference`).
2. For n triggered images, compare the maps of those neurons, and of no
   others, in f_D and in f_A by linear CKA, layer by layer (`similarity`).
3. Average over the layers to S and place f_D between f_C and f_A (`bec`):

     BEC = (S_D − S_C) / (1 − S_C)

1 = as in the backdoored model, 0 = no more than in an unrelated clean model.
The attack success rate does not enter: a model may have ASR 0 and BEC 0.9.

Access:      weights of f_A, f_D, f_C; data: pairs of clean and triggered test
             images; a measurement, not an attack
Space:       features: raw outputs of the convolutions of the stages, before
             BatchNorm and ReLU
BN:          frozen-BN in all passes
Guarantees:  - BEC(f_A) = 1 and BEC(f_C) = 0 by construction
             - neurons come from f_A alone and are reused for every model
             - unselected channels are dropped inside the forward pass
             - `bec` in [0, 1]; `bec_raw` may be negative, or slightly above 1
               if debiased
Divergences: - The official code weights batches of the TAC pass by their
               feature norms; here it is the plain mean over pairs. The order
               within a layer and a batch is the same.
             - Its published scatter scales every row to [0, 1] by the row's
               own minimum and maximum (`legacy_minmax`); here the clean model
               is 0 and the backdoored one is 1.
             - k = max(1, floor(p·C)) neurons per layer: the official floor
               alone leaves narrow layers (C < 1/p) without any.
Cost:        two forward passes over the pairs for f_A, then one over n images
             per model; O(sum of selected maps) + L·n² floats of memory

Finite samples: biased CKA of independent isotropic features is about
√(d d' / ((n + d)(n + d'))) instead of 0 (`cka.independent_floor`); for n = 500
and the layers of PreAct-ResNet18 that is 0.92, 0.86, 0.76, 0.62. Subtracting
S_C removes it only if n, p, the taps and the images are the same for all
models, so compare no two BECs of different n or p; or use `debiased=True`.

Example:
  >>> floor = (0.6, 0.5)  # CKA of clean and backdoored model in two layers
  >>> result = bec(jnp.array([0.9, 0.8]), jnp.array(floor))
  >>> round(float(result['bec']), 4)
  0.6667

References:
  Zhu, Liang, Wu, Breaking the False Sense of Security in Backdoor Defense
  through Re-Activation Attack, NeurIPS 2024.
  JulieCarlon/Backdoor-Reactivation-Attack: BEC/
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.analysis import cka, stream, tac

_GUARD = 1e-3  # least 1 − CKA_C for which a layer's ratio means anything


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('indices', 'grams', 'tac', 'tac_relative'),
  meta_fields=('taps',),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class BecReference:
  """What is measured once on the backdoored model.

  Attributes:
    indices: per tap int32 [k], its backdoor neurons, strongest first.
    grams: float32 [L, n, n], centered Grams of these neurons on n images.
    tac: per tap float32 [channels], trigger-activated change.
    tac_relative: the same relative to the size of the tap's output.
    taps: names of the L layers, in order; static.
  """

  indices: dict[str, jax.Array]
  grams: jax.Array
  tac: dict[str, jax.Array]
  tac_relative: dict[str, jax.Array]
  taps: tuple[str, ...]


def num_neurons(channels: int, p: float) -> int:
  """Backdoor neurons of a layer: max(1, floor(p · channels))."""
  # A hair above the product, so that 0.29 · 100 counts as 29.
  return max(1, math.floor(p * channels + 1e-9))


def reference(
  classifier: types.Classifier,
  attacked: types.ModelState,
  clean,
  triggered,
  images,
  *,
  p: float = 0.1,
  taps: Sequence[str] | None = None,
  batch_size: int = 250,
) -> BecReference:
  """Backdoor neurons of the backdoored model, and its Grams; jittable.

  Args:
    classifier: the model the attack was trained with.
    attacked: the backdoored weights.
    clean: [N, h, w, c], uint8 or float in [0, 1].
    triggered: the same images with the trigger, same order.
    images: [n, h, w, c], triggered images that similarity is measured on.
    p: share of channels kept per layer.
    taps: layers, in order; None = the convolutions of the stages.
    batch_size: images per forward pass; does not change the result.

  Returns:
    The reference, for any number of `similarity` calls.

  Raises:
    ValueError: if p is no fraction, there are fewer than 4 images, or clean
      and triggered images are no pairs.
  """
  checks.fraction(p=p)
  taps = tuple(classifier.info.conv_taps if taps is None else taps)
  if not taps:
    raise ValueError(
      f'{classifier.info.arch} names no `conv_taps`; pass `taps`, the layers '
      'to be compared.'
    )
  if np.shape(images)[0] < 4:
    raise ValueError(
      f'similarity needs at least 4 images, got {np.shape(images)[0]}.'
    )
  change = tac.measure(
    classifier, attacked, clean, triggered, taps=taps, batch_size=batch_size
  )
  # top_k is stable: equal changes keep the lowest index first.
  indices = {
    tap: jax.lax.top_k(change.tac[tap], num_neurons(len(change.tac[tap]), p))[1]
    for tap in taps
  }
  widths = {tap: len(change.tac[tap]) for tap in taps}
  grams = _grams(classifier, attacked, images, indices, widths, batch_size)
  return BecReference(
    indices=indices,
    grams=jnp.stack([grams[tap] for tap in taps]),
    tac=change.tac,
    tac_relative=change.tac_relative,
    taps=taps,
  )


def similarity(
  classifier: types.Classifier,
  reference: BecReference,
  state: types.ModelState,
  images,
  *,
  debiased: bool = False,
  batch_size: int = 250,
) -> jax.Array:
  """Likeness of one model's backdoor neurons to the backdoored model's.

  Written for one checkpoint; lift it over a stack with
  `sweep.over_checkpoints`. With other images of the same originals, such as
  clean ones under a perturbation, it compares how two inputs act.

  Args:
    classifier: the model as deployed, which may differ from the attacked one.
    reference: measured once on the backdoored model.
    state: weights of the model to compare.
    images: [n, h, w, c], those of the reference, in the same order.
    debiased: whether HSIC is estimated without bias.
    batch_size: images per forward pass; does not change the result.

  Returns:
    float32 [L], linear CKA per tap; 0 for a dead layer.

  Raises:
    ValueError: if the number of images or of channels differs from the
      reference, or a tap is missing.
  """
  return layer_cka(
    classifier,
    reference,
    state,
    images,
    debiased=debiased,
    batch_size=batch_size,
  ).value


def layer_cka(
  classifier: types.Classifier,
  reference: BecReference,
  state: types.ModelState,
  images,
  *,
  debiased: bool = False,
  batch_size: int = 250,
) -> cka.Cka:
  """As `similarity`, with a flag [L] for layers whose neurons are all dead."""
  n = reference.grams.shape[-1]
  if np.shape(images)[0] != n:
    raise ValueError(
      f'{np.shape(images)[0]} images for a reference of {n}; pass the very '
      'images the reference was measured on, in the same order.'
    )
  widths = {tap: len(reference.tac[tap]) for tap in reference.taps}
  grams = _grams(
    classifier, state, images, reference.indices, widths, batch_size
  )
  grams = jnp.stack([grams[tap] for tap in reference.taps])
  compare = functools.partial(cka.from_grams, debiased=debiased)
  return jax.vmap(compare)(reference.grams, grams)


def bec(cka_defended, cka_clean) -> dict[str, jax.Array]:
  """The coefficient from layer similarities; arithmetic only.

  Args:
    cka_defended: [..., L] similarities of defended models to the backdoored.
    cka_clean: [L] or [..., L], those of the clean model.

  Returns:
    s_defended, s_clean: layer averages [...].
    bec_raw: (s_defended − s_clean) / (1 − s_clean), the ratio of means; NaN
      where the clean model equals the backdoored one.
    bec: the same clipped to [0, 1].
    bec_per_layer: [..., L], the ratio of each layer; NaN where
      1 − cka_clean ≤ 1e-3.
    bec_mean_of_ratios: average of the layers that have one, NaN if none has.

  Raises:
    ValueError: if the numbers of layers differ.
  """
  defended = jnp.asarray(cka_defended, jnp.float32)
  clean = jnp.asarray(cka_clean, jnp.float32)
  if defended.shape[-1] != clean.shape[-1]:
    raise ValueError(
      f'{defended.shape[-1]} layers of the defended model against '
      f'{clean.shape[-1]} of the clean one; measure both with one reference.'
    )
  clean = jnp.broadcast_to(clean, defended.shape)
  s_defended, s_clean = jnp.mean(defended, -1), jnp.mean(clean, -1)
  raw = _ratio(s_defended, s_clean, 1e-6)
  per_layer = _ratio(defended, clean, _GUARD)
  return {
    's_defended': s_defended,
    's_clean': s_clean,
    'bec_raw': raw,
    'bec': jnp.clip(raw, 0, 1),
    'bec_per_layer': per_layer,
    'bec_mean_of_ratios': _mean_of_known(per_layer),
  }


def legacy_minmax(s_clean, s_defended) -> np.ndarray:
  """The published figure's scale: the row's own minimum 0, its maximum 1.

  Only to overlay that figure: the best-preserving defense becomes 1 whatever
  its similarity, and the clean model need not be 0. Never compare across rows
  or with `bec`.

  Args:
    s_clean: similarity of the clean model, one number.
    s_defended: similarities [m] of all defenses against one attack.

  Returns:
    float64 [m + 1], the clean model first; NaN where all are equal.
  """
  row = np.append(np.asarray(s_clean, float), np.asarray(s_defended, float))
  spread = row.max() - row.min()
  if spread == 0:
    return np.full_like(row, np.nan)
  return (row - row.min()) / spread


def _grams(classifier, state, images, indices, widths, batch_size):
  """Centered Gram [n, n] of the selected channels, per tap."""
  taps = tuple(indices)
  batches, _ = stream.batched(images, batch_size)

  def select(_, batch):
    maps = stream.activations(classifier, state, batch, taps)
    _check_channels(maps, widths)
    chosen = {t: jnp.take(maps[t], indices[t], axis=-1) for t in taps}
    return None, {t: z.reshape(len(batch), -1) for t, z in chosen.items()}

  _, features = jax.lax.scan(select, None, batches)
  n = np.shape(images)[0]
  return {
    t: cka.gram(z.reshape(-1, z.shape[-1])[:n]) for t, z in features.items()
  }


def _check_channels(maps, widths):
  """Raises where a layer has lost or gained channels."""
  for tap, activation in maps.items():
    if activation.shape[-1] != widths[tap]:
      raise ValueError(
        f"'{tap}' has {activation.shape[-1]} channels but {widths[tap]} in "
        'the backdoored model; BEC follows channels by index, so prune by '
        'masks (surgery), never by changing shapes.'
      )


def _ratio(similar, floor, guard: float):
  """(similar − floor) / (1 − floor), NaN where the floor is close to 1."""
  room = 1 - floor
  known = room > guard
  return jnp.where(
    known, (similar - floor) / jnp.where(known, room, 1), jnp.nan
  )


def _mean_of_known(x):
  """Mean over the last axis of what is not NaN; NaN if all are."""
  known = ~jnp.isnan(x)
  count = jnp.sum(known, axis=-1)
  total = jnp.sum(jnp.where(known, x, 0), axis=-1)
  return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)
