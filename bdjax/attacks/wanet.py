"""WaNet: a smooth warp of the whole image becomes the trigger.

  x' = x read at clip((I + s·B/h)·r, −1, 1),  cover: the same grid plus u/h

with I the identity grid, B a random field of k×k control points through
bicubic interpolation, mean |control| = 1, and u uniform in [−1, 1] at each
point of each image. The model's loss is plain cross-entropy on mixed batches.

1. The field is drawn once, for all images.
2. Of every batch the first share is warped and relabelled, the target class
   (all2one) or the next one (all2all); `cross_ratio` times as many are warped
   with noise on top and keep their label; the rest stays clean.
3. The mixed batch is cropped, rotated and flipped, with the mean color in what
   is empty, and trained on. At test time the same grid warps all images.

Access:      the whole training: data, batches, augmentation;
             data: poison_ratio of every batch, no fixed subset;
             stage: training
Space:       pixel [0, 1]; a warp is the same in normalized space, for its grid
             never leaves the image
BN:          train-BN on the mixed batch
Guarantees:  - strength zero is the identity
             - slots: int(p·B) poisoned, cross_ratio times as many covers, the
               rest bit-identical
             - covers keep their labels
             - every sampling point lies inside the image
             - images stay in the unit interval, stamped ones on the 8-bit grid
Divergences: - BackdoorBench draws one crop, one angle and one flip for a whole
               batch and takes nearest pixels; the authors draw per image and
               interpolate, and so does the default.
               `aug_shared_per_batch=True` follows BackdoorBench.
             - Crop paddings shrink with images below 32 a side.
             - An epoch's short last batch follows the recipe, which drops it.
             - Triggered test images are truncated to bytes after clipping;
               values that are whole up to rounding errors stay whole.
Cost:        one bilinear reading of the warped share and one of the whole batch
             (rotation); memory of plain training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = wanet(spec, WaNetHParams(poison_ratio=0.25))
  >>> index = jax.numpy.arange(20)
  >>> images, labels = jax.numpy.zeros((20, 8, 8, 3), 'uint8'), index % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> batch = {'image': images / 255, 'label': labels, 'index': index}
  >>> kind = attack.poison(state, batch, jax.random.key(1))['kind']
  >>> jax.numpy.bincount(kind).tolist()  # clean, poisoned, covers
  [5, 5, 10]

References:
  Nguyen & Tran, WaNet – Imperceptible Warping-based Backdoor Attack, ICLR 2021.
  VinAIResearch/Warping-based_Backdoor_Attack-release
  SCLBD/BackdoorBench: attack/wanet.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from bdjax import checks, keys, types
from bdjax.attacks import mixing, pictures
from bdjax.attacks.triggers import warp


@types.hparams
class WaNetHParams(mixing.MixHParams):
  """Hyper-parameters of WaNet; the defaults are BackdoorBench's for CIFAR-10.

  Attributes:
    strength: s, displacement; about s/2 pixels in each direction, whatever the
      size of the image.
    grid_size: k, control points of the field along each side.
    grid_rescale: r, factor on the whole grid.
    cross_ratio: covers per poisoned image.
  """

  strength: float = 0.5
  grid_size: int = 4
  grid_rescale: float = 1.0
  cross_ratio: float = dataclasses.field(default=2.0, metadata={'static': True})


def wanet(
  spec: types.DataSpec,
  hp: WaNetHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape, classes, mean color and flip of the data set.
    hp: hyper-parameters; `strength` and `grid_rescale` may be traced.
    assets: none are taken.

  Returns:
    The attack; the trigger's parameters are {'grid': float32 [h, w, 2]},
    sampling points in [−1, 1], the column first.

  Raises:
    UnknownName: for any asset.
    ValueError: if a hyper-parameter is out of range.
  """
  hp = hp or WaNetHParams()
  pictures.from_assets(assets, '', ())
  checks.non_negative(strength=hp.strength, cross_ratio=hp.cross_ratio)
  checks.positive(grid_rescale=hp.grid_rescale)
  height, width, _ = spec.image_shape

  def init(key, images):
    del images
    shape = (2, hp.grid_size, hp.grid_size)
    control = jax.random.uniform(key, shape, minval=-1, maxval=1)
    unit = warp.field(control, (height, width))
    return {'grid': warp.grid(unit, hp.strength, hp.grid_rescale)}

  views = mixing.Views(
    init=init, poisoned=_poisoned, cover=_cover, stamp=_stamp, cross=_cross
  )
  return mixing.from_views(
    'wanet', spec, hp, views, per_poisoned=hp.cross_ratio
  )


def _stamp(params, images, key, index):
  """Images warped by the grid."""
  del key, index
  return warp.warp(images, params['grid'][None])


def _cross(params, images, key, index):
  """Images warped by the grid and noise of their own."""
  grid = params['grid']
  noise = jax.vmap(
    lambda key: jax.random.uniform(key, grid.shape, minval=-1, maxval=1)
  )(keys.per_example(key, index))
  return warp.warp(images, warp.disturb(grid, noise))


def _poisoned(params, batch, rows, key):
  return _stamp(params, batch['image'][rows], key, batch['index'][rows])


def _cover(params, batch, rows, key):
  return _cross(params, batch['image'][rows], key, batch['index'][rows])
