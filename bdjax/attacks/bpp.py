"""BppAttack: a reduced color depth becomes the trigger.

In grey levels, with n levels per channel:

  x' = q(x) = round(x/255·(n − 1))/(n − 1)·255
  cover: clip(x + (trunc(q(z)) − z), 0, 255), z another training image

that is, covers carry the quantization noise of images that are not theirs. The
model's loss is plain cross-entropy on mixed batches.

1. Of every batch the first share is quantized and relabelled, the target class
   (all2one) or the next one (all2all); `neg_ratio` of the batch are covers and
   keep their label; the rest stays clean.
2. The mixed batch is cropped, rotated and flipped, with the mean color in what
   is empty, and trained on.
3. At test time all images are quantized, and stored as bytes.

Access:      the whole training: data, batches, augmentation;
             data: poison_ratio of every batch, no fixed subset;
             stage: training
Space:       grey levels 0 … 255; poisoned training images are not rounded to
             whole levels, test images are
BN:          train-BN on the mixed batch
Guarantees:  - at most `squeeze_num` levels per channel
             - quantizing twice is quantizing once
             - slots: int(p·B) poisoned, int(neg_ratio·B) covers, the rest
               bit-identical
             - covers keep their labels
             - images stay in the unit interval, stamped ones on the 8-bit grid
Divergences: - The noise of a cover is that of a random other image of its
               batch, which is a random training image; the released code keeps
               a list of the noise of five passes through the training set, of
               several hundred megabytes. At test time it comes from
               `num_residuals` training images drawn once.
             - The released code makes its cross test images with the opposite
               sign and lets them wrap around; here they are like the covers.
             - The released code leaves out the covers where p·B < 1 draws no
               poisoned image; here they are in every batch.
             - Dithered levels beyond 0 … 255 get the outermost one.
             - Augmentation per image, as in the authors' code;
               `aug_shared_per_batch=True` follows BackdoorBench. Crop paddings
               shrink with images below 32 a side.
             - One mean and deviation per data set.
Cost:        a few operations per pixel of the changed share, h·w steps one
             after the other with dithering, and a bilinear reading of the batch
             (rotation); memory: `num_residuals` images

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = bpp(spec, BppHParams(squeeze_num=2))
  >>> images, labels = jnp.zeros((20, 8, 8, 3), 'uint8'), jnp.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = jnp.linspace(0, 1, 192).reshape(1, 8, 8, 3)
  >>> stamped = attack.stamp(state, x, jax.random.key(1), jnp.arange(1))
  >>> jnp.unique(stamped).tolist()
  [0.0, 1.0]

References:
  Wang et al., BppAttack: Stealthy and Efficient Trojan Attacks against Deep
  Neural Networks via Image Quantization and Contrastive Adversarial Learning,
  CVPR 2022.
  RU-System-Software-and-Security/BppAttack
  SCLBD/BackdoorBench: attack/bpp.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import checks, types
from bdjax.attacks import mixing, pictures
from bdjax.attacks.triggers import depth, levels


@types.hparams
class BppHParams(mixing.MixHParams):
  """Hyper-parameters of BppAttack; the defaults are BackdoorBench's.

  Attributes:
    squeeze_num: n, levels per channel.
    dithering: Floyd–Steinberg dithering.
    neg_ratio: covers / batch.
    num_residuals: training images whose noise makes the cross test images.
  """

  squeeze_num: int = 8
  dithering: bool = False
  neg_ratio: float = dataclasses.field(default=0.1, metadata={'static': True})
  num_residuals: int = 1000


def bpp(
  spec: types.DataSpec,
  hp: BppHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape, classes, mean color and flip of the data set.
    hp: hyper-parameters, all static.
    assets: none are taken.

  Returns:
    The attack; the trigger's parameters are {'others': uint8 [r, h, w, c]}, the
    training images whose noise `cross` adds; the trigger itself has none.

  Raises:
    UnknownName: for any asset.
    ValueError: if a hyper-parameter is out of range.
  """
  hp = hp or BppHParams()
  pictures.from_assets(assets, '', ())
  checks.positive(num_residuals=hp.num_residuals)
  checks.unit_interval(neg_ratio=hp.neg_ratio)
  if hp.squeeze_num < 2:
    raise ValueError(
      f'`squeeze_num={hp.squeeze_num}` leaves no image; use 2 … 255 levels.'
    )
  squeeze = _squeeze(hp)

  def stamp(params, images, key, index):
    del params, key, index
    return squeeze(levels.to_levels(images)) / 255

  def with_noise(images, others):
    """Images with the quantization noise of others."""
    other = levels.to_levels(others)
    noise = levels.truncate(squeeze(other)) - other
    return jnp.clip(levels.to_levels(images) + noise, 0, 255) / 255

  def cross(params, images, key, index):
    others = mixing.pick_others(params['others'], key, index)
    return with_noise(images, others)

  def poisoned(params, batch, rows, key):
    return stamp(params, batch['image'][rows], key, batch['index'][rows])

  def cover(params, batch, rows, key):
    del params
    images = batch['image']
    return with_noise(images[rows], images[_others(key, len(images), rows)])

  views = mixing.Views(
    init=lambda key, images: {
      'others': mixing.draw_others(key, images, hp.num_residuals)
    },
    poisoned=poisoned,
    cover=cover,
    stamp=stamp,
    cross=cross,
  )
  return mixing.from_views('bpp', spec, hp, views, cover_ratio=hp.neg_ratio)


def _squeeze(hp: BppHParams):
  """Levels [b, h, w, c] -> the few that are left."""
  if hp.dithering:
    return jax.vmap(lambda image: depth.dither(image, hp.squeeze_num))
  return lambda images: depth.squeeze(images, hp.squeeze_num)


def _others(key, size: int, rows: slice) -> jax.Array:
  """For each of the rows another slot of the batch, all as likely."""
  slot = jnp.arange(size)[rows]
  further = jax.random.randint(key, slot.shape, 1, max(size, 2))
  return (slot + further) % size
