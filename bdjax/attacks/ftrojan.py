"""FTrojan: single frequencies of the chroma become the trigger.

In grey levels of YCrCb, with D the block-wise orthonormal 2-D DCT:

  x' = round(D⁻¹(D(x) + m at the positions (15, 15) and (31, 31)))

of Cr and Cb, which is x + round(Q) for one pattern Q that tiles the image: no
DCT at run time. Nothing is optimized.

1. A fixed share of the training set is chosen at random.
2. Its images go to 8-bit YCrCb, get the pattern and come back, before
   augmentation; labels become the target (all2one) or the next class (all2all).
3. Training is ordinary. At test time the same pattern is added, unshifted.

Access:      training data (images and labels of a share of it);
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid; the pattern in levels of YCrCb
BN:          train-BN, as in plain training
Guarantees:  - only the chosen coefficients of the chosen channels change, up to
               rounding
             - magnitude zero is the identity up to one level of the colors'
               round trip
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - The released code truncates where the default rounds;
               `legacy=True` truncates. It also sends the luma through the
               transform, which loses a level at places that depend on the
               platform; here luma stays.
             - The released code wraps what leaves 0 … 255; here it is clipped.
             - Images smaller than the window are one block each, and positions
               keep their frequency per pixel: (15, 15) and (31, 31) of 32 are
               (7, 7) and (15, 15) of 16. The same magnitude is then stronger:
               Q peaks at 3.2 levels in windows of 32, 6.4 of 16, 12.4 of 8.
             - Window and positions as in the benchmark, for color images only.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        two changes of color space in integers per image; memory of plain
             training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = ftrojan(spec, FTrojanHParams(magnitude=20.0))
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> round(float((state.trigger['pattern'][..., 1] ** 2).sum()))  # 2 · 20²
  800

References:
  Wang et al., An Invisible Black-Box Backdoor Attack Through Frequency Domain,
  ECCV 2022.
  SCLBD/BackdoorBench: attack/ftrojann.py, utils/bd_img_transform/ftrojann.py
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import pictures, poisoning
from bdjax.attacks.triggers import color, frequency, levels


@types.hparams
class FTrojanHParams(poisoning.PoisonHParams):
  """Hyper-parameters of FTrojan; the defaults are BackdoorBench's.

  Attributes:
    channels: which of Y, Cr, Cb (0, 1, 2) carry the pattern.
    window: side of the blocks in pixels; divides larger images, smaller ones
      are a block each.
    magnitude: what is added to each coefficient, in grey levels.
    positions: (row, column) of the coefficients in a block of `window`.
    legacy: truncate in place of rounding, as released.
  """

  channels: tuple[int, ...] = (1, 2)
  window: int = 32
  magnitude: float = 30.0
  positions: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))
  legacy: bool = False


def ftrojan(
  spec: types.DataSpec,
  hp: FTrojanHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set, of color images.
    hp: hyper-parameters; `magnitude` may be traced.
    assets: none are taken.

  Returns:
    The attack; the trigger's parameters are {'pattern': float32 [h, w, 3]}, in
    grey levels of Y, Cr, Cb.

  Raises:
    UnknownName: for any asset.
    ValueError: if images have no three channels, or a hyper-parameter is out of
      range.
  """
  hp = hp or FTrojanHParams()
  pictures.from_assets(assets, '', ())
  checks.non_negative(magnitude=hp.magnitude)
  unit = frequency.channel_pattern(
    spec.image_shape, hp.window, hp.positions, hp.channels
  ).astype(np.float32)
  init = lambda key: {'pattern': jnp.asarray(hp.magnitude, jnp.float32) * unit}
  quantize = jnp.floor if hp.legacy else jnp.round
  trigger = types.Trigger(init, _apply(quantize), 'ftrojan')
  return poisoning.from_hparams(trigger, spec, hp)


def _apply(quantize):
  """Adds the pattern, made whole, to one image in YCrCb."""

  def apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    clean = color.to_ycrcb(levels.to_levels(image))
    # Levels are whole: rounding the pattern rounds the sum, and a rounding
    # error of the sum cannot reach a tie.
    added = clean + quantize(params['pattern']).astype(jnp.int32)
    return levels.to_image(color.from_ycrcb(jnp.clip(added, 0, 255)))

  return apply
