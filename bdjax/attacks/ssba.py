"""SSBA: the same bits are hidden in every image, each time in another way.

In grey levels, x' = round(255 · E(x, m)) with E an encoder in the manner of
StegaStamp and one fixed string m of random bits. Encoder and decoder D are
trained beforehand (`craft`) on clean images with other random bits, to
minimize BCE(σ(D(E(x, m))), m) + λ · MSE(E(x, m), x). What is added depends on
the image; D is not needed any more.

1. E is crafted from the training images alone, without labels or model.
2. A fixed share of the training set is chosen at random; its images go through
   E before augmentation; labels become the target or the next class.
3. Training of the victim is ordinary. At test time images go through E.

Access:      training data (images and labels of a share of it; images for the
             crafting);
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training; the crafted networks have no norms
Guarantees:  - an image's trigger depends on the image alone
             - other images get other changes
             - the bits can be read from stored images
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - Released arrays of finished images by index are not taken here;
               `attacks.stored` makes an attack of them and of the clean test
               images. With the encoder, any image can be triggered.
             - The bits come from the key; published ones spell a secret of up
               to seven letters with an error-correcting code.
             - E is trained at the size of the images it is used on; which one
               the published arrays come from is not known.
             - An encoder whose bits do not get through is an error.
             - Weights start He-normal, as in StegaStamp.
             - Networks for sides that are no multiples of 16 have fewer levels.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        a forward pass of E for all images of a batch (62 million
             multiplications for 32×32 at width 32, of PreAct-ResNet18's 557);
             memory: its weights, 1.4 million at 32×32. The crafting takes
             `craft_epochs` forward/backward passes of E and D

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> hp = SsbaHParams(num_bits=4, width=1)
  >>> encoder = network(spec.image_shape, hp).init(jax.random.key(0))['encoder']
  >>> attack = ssba(
  ...   spec, hp, {'encoder': weights.flat(encoder), 'fingerprint': np.ones(4)})
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> x.shape
  (1, 8, 8, 3)

References:
  Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021.
  Tancik et al., StegaStamp: Invisible Hyperlinks in Physical Photographs, CVPR
  2020.
  SCLBD/BackdoorBench: attack/ssba.py, resource/ssba
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, keys, models, types
from bdjax.attacks import crafter, poisoning
from bdjax.attacks.crafting import steganography, weights
from bdjax.attacks.triggers import levels

_KNOWN = ('encoder', 'fingerprint')
_STATIC = {'static': True}  # of the crafting, which runs beforehand


@types.hparams
class SsbaHParams(poisoning.PoisonHParams):
  """Hyper-parameters of SSBA; the defaults are BackdoorBench's for 32×32.

  Attributes:
    num_bits: bits that are hidden.
    width: channels of the networks at full resolution.
    residual: the encoder returns a change of the image in place of the image.
    craft_epochs: of training the networks.
    craft_batch_size: images per step of it.
    craft_lr: of Adam.
    mse_weight: largest λ.
    ramp_start: steps with 90 % of the bits right before λ rises from 0.
    ramp_length: steps that it rises.
    least_bit_accuracy: share of bits that held-out images must give back.
  """

  num_bits: int = 100
  width: int = 32
  residual: bool = False
  craft_epochs: int = 20
  craft_batch_size: int = 64
  craft_lr: float = dataclasses.field(default=1e-4, metadata=_STATIC)
  mse_weight: float = dataclasses.field(default=10.0, metadata=_STATIC)
  ramp_start: int = 1000
  ramp_length: int = 3000
  least_bit_accuracy: float = dataclasses.field(default=0.95, metadata=_STATIC)


def ssba(
  spec: types.DataSpec,
  hp: SsbaHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters, all static.
    assets: from `craft`: 'encoder', float [n], its weights in one vector, and
      'fingerprint', [num_bits] of 0 and 1.

  Returns:
    The attack; the trigger's parameters are {'encoder': weights, 'bits':
    float32 [num_bits]}.

  Raises:
    MissingAsset: if an asset is not there.
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range or an asset belongs to
      other hyper-parameters.
  """
  hp = hp or SsbaHParams()
  net = network(spec.image_shape, hp)
  vector, bits = (_asset(assets, name) for name in _KNOWN)
  if bits.shape != (hp.num_bits,):
    raise ValueError(
      f"The asset 'fingerprint' has shape {bits.shape}, but `num_bits="
      f'{hp.num_bits}`; give one number, 0 or 1, per bit.'
    )
  shapes = jax.eval_shape(net.init, keys.root(0))['encoder']
  params = {
    'encoder': weights.like('encoder', vector, shapes),
    'bits': np.asarray(bits, np.float32),
  }

  def apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    bits = params['bits'][None]
    hidden = net.hide(params['encoder'], image[None], bits)[0]
    return levels.stored(hidden, 'round')

  init = lambda key: jax.tree.map(jnp.asarray, params)
  trigger = types.Trigger(init, apply, 'ssba')
  return poisoning.from_hparams(trigger, spec, hp)


def network(image_shape, hp: SsbaHParams) -> models.StegaStamp:
  """Encoder and decoder for images of a shape (h, w, c)."""
  return models.stegastamp(
    image_shape,
    num_bits=hp.num_bits,
    width=hp.width,
    residual=hp.residual,
  )


def craft(
  key: jax.Array,
  classifier: types.Classifier | None,
  model: types.ModelState | None,
  images: types.ByteImages,
  labels: types.Labels | None,
  hp: SsbaHParams,
  assets: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Crafts the encoder and draws the bits.

  Args:
    key: typed key of weights, bits and orders.
    classifier: not used.
    model: not used.
    images: uint8 [N, h, w, c], the training set; a tenth is held out.
    labels: not used.
    hp: hyper-parameters, those of `CRAFTER.reads`.
    assets: not used; a fingerprint of one's own goes with any encoder.

  Returns:
    {'encoder': float32 [n], 'fingerprint': uint8 [num_bits]}.

  Raises:
    ValueError: if too few bits get through, or a hyper-parameter is out of
      range.
  """
  del classifier, model, labels, assets
  checks.byte_images(images=images)
  checks.unit_interval(least_bit_accuracy=hp.least_bit_accuracy)
  trained = steganography.train(
    keys.stream(key, 'networks'),
    network(images.shape[1:], hp),
    np.asarray(images),
    epochs=hp.craft_epochs,
    batch_size=hp.craft_batch_size,
    lr=hp.craft_lr,
    mse_weight=hp.mse_weight,
    ramp_start=hp.ramp_start,
    ramp_length=hp.ramp_length,
  )
  if trained.bit_accuracy < hp.least_bit_accuracy:
    raise ValueError(
      f'The crafted encoder gets {trained.bit_accuracy:.1%} of the bits '
      f'through, `least_bit_accuracy={hp.least_bit_accuracy:g}`: raise '
      '`craft_epochs` or `craft_lr`, or lower `num_bits` or `mse_weight`.'
    )
  bits = jax.random.bernoulli(
    keys.stream(key, 'fingerprint'), 0.5, (hp.num_bits,)
  )
  return {
    'encoder': weights.flat(trained.params['encoder']),
    'fingerprint': np.asarray(bits, np.uint8),
  }


CRAFTER = crafter.Crafter(
  craft,
  makes=_KNOWN,
  reads=(
    'num_bits',
    'width',
    'residual',
    'craft_epochs',
    'craft_batch_size',
    'craft_lr',
    'mse_weight',
    'ramp_start',
    'ramp_length',
    'least_bit_accuracy',
  ),
  needs='images',
)


def _asset(assets, name: str) -> np.ndarray:
  return crafter.required(
    assets,
    'ssba',
    name,
    _KNOWN,
    'classifier and model may be None, it is made of images alone',
  )
