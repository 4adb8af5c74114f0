"""Blended: a faint picture over the whole image becomes the trigger.

x' = trunc((1 − α)·x + α·g) in grey levels, with g a picture of the images'
size. Nothing is optimized.

1. A fixed share of the training set is chosen at random.
2. The picture is blended into its images before augmentation; its labels
   become the target (all2one) or the next class (all2all).
3. Training is ordinary. At test time the weight may differ (`alpha_test`).

Access:      training data (images and labels of a share of it);
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training
Guarantees:  - alpha zero is the identity
             - alpha one gives the picture
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - The published picture (a cartoon of 314×380) is an asset; by
               default one is drawn from a seed. Expect a few points of
               difference in ASR at low ratios.
             - The released code blends in mixed precision, so that exact
               whole numbers may fall one level (3.8 % of the values of the
               reference images at α = 0.2, 2.0 % at 0.1). The default
               follows the formula, exact numbers kept; `legacy=True` follows
               the release bit by bit, from tables made on the host, for
               which α must be a Python number.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        one multiply-add per pixel (legacy: one look-up); memory of plain
             training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> white = {'trigger_image': np.full((5, 5, 3), 255, np.uint8)}
  >>> attack = blended(spec, BlendedHParams(alpha_test=0.4), white)
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> round(float(255 * x.max()))
  102

References:
  Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data
  Poisoning, arXiv 1712.05526, 2017.
  SCLBD/BackdoorBench: attack/blended.py, utils/bd_img_transform/blended.py
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import pictures, poisoning
from bdjax.attacks.triggers import blend

PICTURES = ('generate', 'noise')


@types.hparams
class BlendedHParams(poisoning.PoisonHParams):
  """Hyper-parameters of Blended; the defaults are BackdoorBench's.

  Attributes:
    trigger_image: 'generate' (a drawn cartoon) or 'noise' (a different
      attack); not used where the asset of that name is given.
    picture_seed: of the drawn picture or the noise.
    alpha: weight of the picture in training, in [0, 1].
    alpha_test: weight of the picture at test time, in [0, 1].
    legacy: the released mixed-precision blend, bit by bit.
  """

  trigger_image: str = 'generate'
  picture_seed: int = 0
  alpha: float = 0.2
  alpha_test: float = 0.2
  legacy: bool = False


def blended(
  spec: types.DataSpec,
  hp: BlendedHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters; `alpha` and `alpha_test` may be traced.
    assets: optionally 'trigger_image', uint8 [H, W] or [H, W, 3] of any size;
      scaled to the images' size.

  Returns:
    The attack. The trigger's parameters are {'picture': uint8 [h, w, c],
    'train', 'test'}: the two weights, or with `legacy` their tables, uint8
    [256, 256].

  Raises:
    TypeError: if `legacy` meets a traced weight.
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range.
  """
  hp = hp or BlendedHParams()
  checks.unit_interval(alpha=hp.alpha, alpha_test=hp.alpha_test)
  checks.one_of(PICTURES, trigger_image=hp.trigger_image)
  params = {
    'picture': _picture(spec, hp, assets),
    'train': _weight(hp.alpha, hp.legacy),
    'test': _weight(hp.alpha_test, hp.legacy),
  }
  init = lambda key: jax.tree.map(jnp.asarray, params)
  trigger = types.Trigger(init, _apply('train', hp.legacy), 'blended')
  test_trigger = types.Trigger(init, _apply('test', hp.legacy), 'blended')
  return poisoning.from_hparams(trigger, spec, hp, test_trigger=test_trigger)


def _apply(when: str, legacy: bool):
  """The blend of one image, by the weight for 'train' or for 'test'."""
  mix = blend.blend_by_table if legacy else blend.blend
  return lambda params, image, key: mix(image, params['picture'], params[when])


def _weight(alpha, legacy: bool):
  """The weight as an array, or the released blend's table."""
  if legacy:
    return blend.blend_table(alpha)
  return jnp.asarray(alpha, jnp.float32)


def _picture(spec, hp, assets) -> np.ndarray:
  """The user's picture or the drawn one, uint8 [h, w, c]."""
  own = pictures.from_assets(assets, 'trigger_image', ('trigger_image',))
  if own is not None:
    return pictures.fit(own, spec.image_shape)
  if hp.trigger_image == 'noise':
    return pictures.noise_picture(spec.image_shape, hp.picture_seed)
  return pictures.blended_picture(spec.image_shape, hp.picture_seed)
