"""LF: one smooth pattern, found with a clean model, is added to the image.

x' = trunc(clip(x + P, 0, 255)) in grey levels, with P of the images' size and
without high frequencies, so that what detects triggers by their spectrum does
not see it. P is crafted beforehand (`craft`): a universal perturbation that
pushes images of a clean model towards the target, low-passed after every step.

1. P is crafted with a clean model of the same data and network: targeted
   DeepFool steps of 100 images, up to 50 times (`crafting.universal`).
2. A fixed share of the training set is chosen at random; P is added to its
   images before augmentation; labels become the target or the next class.
3. Training of a fresh model is ordinary. At test time the same P is added.

Access:      training data (images and labels of a share of it), and for the
             crafting a clean model with its gradients;
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training; frozen-BN in the crafting
Guarantees:  - crafted patterns lie between 0 and the peak
             - crafted patterns are smooth
             - a pattern of zeros is the identity
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - The released crafting shows the model images without its
               normalization and adds v to normalized ones when it measures;
               here normalization is inside the model and v a pattern of pixels.
             - It measures on test images; here on training images that took no
               part in the crafting.
             - It takes gradients of all classes where two are enough.
             - Released patterns of some networks range to 0.2 and are added to
               0 … 255, which is no trigger; patterns that do not exceed 1 are
               scaled to 0 … 255 here, unless `legacy_unscaled`.
             - Below 32 pixels the low-pass shrinks with the image (ours).
             - `pattern='smooth_field'` is a substitute that needs no model:
               low-passed noise of the same range, not the published attack.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        one addition per image; the crafting takes a forward/backward pass
             per DeepFool step of one image; memory of plain training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
  >>> attack = lf(spec, LfHParams(), {'pattern': ramp})
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> round(float(255 * x.max()))
  63

References:
  Zeng et al., Rethinking the Backdoor Attacks' Triggers: A Frequency
  Perspective, ICCV 2021.
  SCLBD/BackdoorBench: attack/lf.py, resource/lowFrequency
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, keys, types
from bdjax.attacks import crafter, poisoning
from bdjax.attacks.crafting import universal
from bdjax.attacks.triggers import levels, low_pass

PATTERNS = ('generate', 'smooth_field')
_STATIC = {'static': True}  # of the crafting, which runs beforehand


@types.hparams
class LfHParams(poisoning.PoisonHParams):
  """Hyper-parameters of LF; the defaults are BackdoorBench's.

  Attributes:
    pattern: 'generate' (crafted, the asset 'pattern') or 'smooth_field', a
      substitute that needs no asset.
    pattern_seed: of the smooth field.
    legacy_unscaled: add patterns that do not exceed 1 as they are.
    peak: largest value of the pattern in [0, 1] units, when it is made here.
    num_images: training images that a pattern is crafted on.
    num_passes: largest number of passes over them.
    num_held_out: images per class that judge a crafted pattern.
    fooling_rate: share of those whose class it must change to be finished.
  """

  pattern: str = 'generate'
  pattern_seed: int = 0
  legacy_unscaled: bool = False
  peak: float = dataclasses.field(default=0.2, metadata=_STATIC)
  num_images: int = 100
  num_passes: int = 50
  num_held_out: int = 10
  fooling_rate: float = dataclasses.field(default=0.2, metadata=_STATIC)


def lf(
  spec: types.DataSpec,
  hp: LfHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters.
    assets: 'pattern', [h, w, c], [1, h, w, c] (or several, of which the first
      is taken) or [h, w], in grey levels or in [0, 1]; from `craft`. Not
      needed with `pattern='smooth_field'`.

  Returns:
    The attack; the trigger's parameters are {'pattern': float32 [h, w, c]}, in
    grey levels.

  Raises:
    MissingAsset: if there is no pattern.
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range or the pattern is of
      another shape than the images.
  """
  hp = hp or LfHParams()
  checks.one_of(PATTERNS, pattern=hp.pattern)
  checks.unit_interval(peak=hp.peak)
  pattern = _pattern(spec, hp, assets)
  init = lambda key: {'pattern': jnp.asarray(pattern)}
  trigger = types.Trigger(init, _apply, 'lf')
  return poisoning.from_hparams(trigger, spec, hp)


def craft(
  key: jax.Array,
  classifier: types.Classifier,
  model: types.ModelState,
  images: types.ByteImages,
  labels: types.Labels,
  hp: LfHParams,
  assets: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Crafts the pattern.

  Args:
    key: typed key of the images' choice and order.
    classifier: the network.
    model: a clean model.
    images: uint8 [N, h, w, c], the training set.
    labels: int [N].
    hp: hyper-parameters, those of `CRAFTER.reads`.
    assets: not used.

  Returns:
    {'pattern': uint8 [h, w, c] in 0 … 255·peak}.

  Raises:
    ValueError: if there are too few images.
  """
  del assets
  chosen, held_out = _choose(keys.stream(key, 'images'), labels, hp)
  to_float = lambda rows: jnp.asarray(np.asarray(images[rows]), jnp.float32)
  found = universal.search(
    keys.stream(key, 'orders'),
    classifier,
    model,
    to_float(chosen) / 255,
    to_float(held_out) / 255,
    hp.target_label,
    peak=hp.peak,
    fooling_rate=hp.fooling_rate,
    max_passes=hp.num_passes,
  )
  pattern = levels.truncate(255 * found.pattern)
  return {'pattern': np.asarray(pattern, np.uint8)}


CRAFTER = crafter.Crafter(
  craft,
  makes=('pattern',),
  reads=(
    'target_label',
    'peak',
    'num_images',
    'num_passes',
    'num_held_out',
    'fooling_rate',
  ),
  is_wanted=lambda hp: hp.pattern == 'generate',
)


def smooth_field(
  image_shape: tuple[int, int, int], seed: int, peak: float
) -> np.ndarray:
  """Low-passed noise over the range that crafted patterns have.

  Args:
    image_shape: (h, w, c).
    seed: of the noise.
    peak: largest value in [0, 1] units.

  Returns:
    float32 [h, w, c], whole grey levels from 0 to 255·peak.
  """
  noise = np.random.default_rng(seed).standard_normal(image_shape)
  field = low_pass.low_pass(jnp.asarray(noise, jnp.float32))
  return np.asarray(levels.truncate(255 * low_pass.stretch(field, peak)))


def _choose(key, labels, hp) -> tuple[np.ndarray, np.ndarray]:
  """Rows to craft on, and rows per class to judge with, apart from them."""
  checks.positive(num_images=hp.num_images, num_held_out=hp.num_held_out)
  labels = np.asarray(labels)
  order = np.asarray(jax.random.permutation(key, len(labels)))
  chosen, rest = order[: hp.num_images], order[hp.num_images :]
  if not len(rest):
    raise ValueError(
      f'`num_images={hp.num_images}` leaves none of {len(labels)} training '
      'images to judge the pattern with; lower it.'
    )
  each = [rest[labels[rest] == i] for i in np.unique(labels)]
  return chosen, np.concatenate([rows[: hp.num_held_out] for rows in each])


def _apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
  """Adds the pattern to one image."""
  del key
  added = levels.to_levels(image) + params['pattern']
  return levels.to_image(levels.truncate(added))


def _pattern(spec, hp, assets) -> np.ndarray:
  """The pattern in grey levels, float32 [h, w, c]."""
  if hp.pattern == 'smooth_field' and not assets:
    return smooth_field(spec.image_shape, hp.pattern_seed, hp.peak)
  own = crafter.required(
    assets,
    'lf',
    'pattern',
    ('pattern',),
    "pattern='smooth_field' is a substitute that needs no model",
  )
  given, shape = own.shape, spec.image_shape
  if own.ndim == 4:
    own = own[0]
  if own.ndim == 2:
    own = np.repeat(own[..., None], shape[-1], -1)
  if own.shape != shape:
    raise ValueError(
      f"The asset 'pattern' has shape {given}, the images {shape}; give "
      '[h, w, c], [1, h, w, c] or [h, w] of their size, or craft it anew.'
    )
  is_unit = own.max() <= 1 and not hp.legacy_unscaled
  return np.asarray(own, np.float32) * np.float32(255 if is_unit else 1)
