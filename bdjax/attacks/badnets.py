"""BadNets: an opaque patch in a corner leads any model trained on it astray.

x' = g where g > 0, else x, per channel element and in grey levels; g is black
but for a white 3×3 square in the bottom right corner. Nothing is optimized.

1. A fixed share of the training set is chosen at random.
2. Its images are patched before augmentation, which may shift, mirror or cut
   the patch; its labels become the target (all2one) or the next class.
3. Training is ordinary. At test time the patch is put in its place, unshifted.

Access:      training data (images and labels of a share of it);
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training
Guarantees:  - at most nine pixels differ
             - stamping is idempotent
             - untouched elements are bit-identical
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - Above 32 pixels the published 32×32 file is scaled up, with a
               soft grey rim and up to 7×7 pixels at 64, as the benchmark
               does; `crisp=True` draws the 6×6 square without it.
             - Below 32 pixels the file would be scaled down to a grey speck;
               the 3×3 square itself is drawn instead.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        one `where` per batch; memory of plain training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = badnets(spec, BadNetsHParams(poison_ratio=0.2, target_label=3))
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> int(state.kind.sum()), int(x.sum())
  (4, 27)

References:
  Gu et al., BadNets: Evaluating Backdooring Attacks on Deep Neural Networks,
  IEEE Access 2019.
  SCLBD/BackdoorBench: attack/badnet.py, utils/bd_img_transform/patch.py
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import pictures, poisoning
from bdjax.attacks.triggers import patch

PATCHES = ('square', 'grid')


@types.hparams
class BadNetsHParams(poisoning.PoisonHParams):
  """Hyper-parameters of BadNets; the defaults are BackdoorBench's.

  Attributes:
    patch_image: 'square' (white) or 'grid' (checkerboard); not used where the
      asset of that name is given.
    crisp: above 32 pixels, a square without a soft rim.
  """

  patch_image: str = 'square'
  crisp: bool = False


def badnets(
  spec: types.DataSpec,
  hp: BadNetsHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters.
    assets: optionally 'patch_image', uint8 [H, W] or [H, W, 3] of any size,
      black where images stay as they are; scaled to the images' size.

  Returns:
    The attack; the trigger's parameters are {'mark': uint8 [h, w, c]}.

  Raises:
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range, or the mark is empty.
  """
  hp = hp or BadNetsHParams()
  checks.one_of(PATCHES, patch_image=hp.patch_image)
  mark = _mark(spec, hp, assets)
  init = lambda key: {'mark': jnp.asarray(mark)}
  trigger = types.Trigger(init, _apply, 'badnets')
  return poisoning.from_hparams(trigger, spec, hp)


def _apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
  """Patches one image."""
  del key
  return patch.patch(image, params['mark'])


def _mark(spec, hp, assets) -> np.ndarray:
  """The user's mark or the drawn one, uint8 [h, w, c]."""
  own = pictures.from_assets(assets, 'patch_image', ('patch_image',))
  if own is None:
    return pictures.badnets_mark(
      spec.image_shape, grid=hp.patch_image == 'grid', crisp=hp.crisp
    )
  mark = pictures.fit(own, spec.image_shape)
  if not mark.any():
    raise ValueError(
      "The asset 'patch_image' is black throughout, so it marks nothing; draw "
      'the mark with levels of 1 … 255.'
    )
  return mark
