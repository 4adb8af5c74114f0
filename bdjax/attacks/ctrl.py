"""CTRL: two frequencies of the chroma, clean-label, become the trigger.

In grey levels of YUV, with D the orthonormal 2-D DCT of the whole image:

  x' = trunc(clip(YUV⁻¹(D⁻¹(D(YUV(x)) + m at (15, 15) and (31, 31))), 0, 255))

in U and V, which is one fixed pattern added to the image: no DCT at run time.
Nothing is optimized.

1. A fixed share of the training set is chosen, from the target class alone
   (clean-label, the default).
2. The pattern is added to its images before augmentation; labels stay.
3. Training is ordinary. At test time the same pattern leads every class to the
   target.

Access:      training images of the target class (with `clean_label=False`:
             images and labels of all classes); data: poison_ratio of the whole
             training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid; the pattern in levels of YUV
BN:          train-BN, as in plain training
Guarantees:  - labels of the training set stay
             - only the chosen coefficients of the chosen channels change, up to
               rounding
             - magnitude zero keeps grey images, and others up to one level
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - Published for self-supervised training, whose encoder it
               poisons; here, as in the benchmark, the training is supervised.
             - The released code wraps what leaves 0 … 255; here it is clipped,
               unless `wrap=True`.
             - The color matrices are those of Kornia 0.5.0, of three decimals
               and not exact inverses. The round trip is computed in whole
               millionths of a level, hence the same on all devices; the
               released float32 differs where a level is met exactly.
             - Images smaller than 32 keep the frequency per pixel: (15, 15) and
               (31, 31) are (7, 7) and (15, 15) of 16, and the same magnitude is
               a stronger pattern (peaks in blue at 22 levels in 32, 43 in 16).
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        nine integer multiply-adds per pixel; memory of plain training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = ctrl(spec, CtrlHParams(magnitude=20.0))
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> red = state.trigger['pattern'][..., 0]
  >>> round(float((red ** 2).sum()))  # 2 · (1.14 · 20)²
  1040

References:
  Li et al., An Embarrassingly Simple Backdoor Attack on Self-supervised
  Learning, ICCV 2023.  meet-cjli/CTRL
  SCLBD/BackdoorBench: attack/ctrl.py, utils/bd_img_transform/ctrl.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import pictures, poisoning
from bdjax.attacks.triggers import frequency, levels

_WINDOW = 32  # side of the images that the positions are published for
# In thousandths: rows Y, U, V of R, G, B; and back.
_TO_YUV = np.array([[299, 587, 114], [-147, -289, 436], [615, -515, -100]])
_TO_RGB = np.array([[1000, 0, 1140], [1000, -396, -581], [1000, 2029, 0]])
_UNIT = 1_000_000  # parts of a level in which products of both are whole
_LARGEST = 1024  # levels a pattern can add; past 255 the image is gone


@types.hparams
class CtrlHParams(poisoning.PoisonHParams):
  """Hyper-parameters of CTRL; the defaults are BackdoorBench's.

  Attributes:
    poison_ratio: poisoned / whole training set, in (0, 1].
    clean_label: poison the target class alone and leave its labels.
    channels: which of Y, U, V (0, 1, 2) carry the pattern.
    window: side of the blocks in pixels; None = the image.
    magnitude: what is added to each coefficient, in grey levels.
    positions: (row, column) of the coefficients, of blocks of 32 or more.
    wrap: go on at 0 after 255, as released, in place of clipping.
  """

  poison_ratio: float = dataclasses.field(
    default=0.05, metadata={'static': True}
  )
  clean_label: bool = True
  channels: tuple[int, ...] = (1, 2)
  window: int | None = None
  magnitude: float = 100.0
  positions: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))
  wrap: bool = False


def ctrl(
  spec: types.DataSpec,
  hp: CtrlHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set, of color images.
    hp: hyper-parameters; `magnitude` may be traced.
    assets: none are taken.

  Returns:
    The attack; the trigger's parameters are {'pattern': float32 [h, w, 3]}, in
    grey levels of R, G, B.

  Raises:
    UnknownName: for any asset.
    ValueError: if images have no three channels, or a hyper-parameter is out of
      range.
  """
  hp = hp or CtrlHParams()
  pictures.from_assets(assets, '', ())
  checks.non_negative(magnitude=hp.magnitude)
  unit = _unit_pattern(spec, hp)
  init = lambda key: {'pattern': jnp.asarray(hp.magnitude, jnp.float32) * unit}
  trigger = types.Trigger(init, _apply(hp.wrap), 'ctrl')
  return poisoning.from_hparams(trigger, spec, hp)


def _apply(wrap: bool):
  """Adds the pattern to one image on its way through YUV."""
  round_trip = (_TO_RGB @ _TO_YUV).T.astype(np.int32)

  def apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    whole = levels.to_levels(image).astype(jnp.int32)
    pattern = jnp.clip(params['pattern'], -_LARGEST, _LARGEST)
    added = jnp.round(_UNIT * pattern).astype(jnp.int32)
    # Division of integers drops the fraction, towards zero as a cast does.
    total = jax.lax.div(whole @ round_trip + added, jnp.int32(_UNIT))
    total = total % 256 if wrap else jnp.clip(total, 0, 255)
    return levels.to_image(total)

  return apply


def _unit_pattern(spec: types.DataSpec, hp: CtrlHParams) -> np.ndarray:
  """The pattern of magnitude 1 in RGB, float32 [h, w, 3]."""
  window = hp.window
  if window is None:
    window = max(spec.image_shape[0], _WINDOW)
  chroma = frequency.channel_pattern(
    spec.image_shape, window, hp.positions, hp.channels
  )
  return (chroma @ _TO_RGB.T / 1000).astype(np.float32)
