"""PoisonInk: edges of the image, colored and hidden in it by a network.

With s(x) a picture of x's edges in one color on white,

  x' = round(255 · clip(H(x, s(x)), 0, 1))                   in grey levels,

edges being where the Sobel magnitude of the brightness exceeds 28 levels. H is
trained beforehand (`craft`) with a network R that has to get s back from H's
images, and white from clean ones, also after random changes; see
`crafting.ink`. The victim's loss is the mean cross-entropy of two streams:
clean images under augmentation, and the poisoned set as it is.

1. H is crafted from the training images alone, without labels or model.
2. A fixed share of the training set is chosen at random; its images go through
   H; labels become the target or the next class.
3. Every step trains on a batch twice: clean and augmented, and with its
   poisoned images in it, not augmented. At test time images go through H.

Access:      training data (images and labels of a share of it; images for the
             crafting), and with `two_streams` the training's batches;
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, in one pass over both streams; H frozen-BN
Guarantees:  - an image's trigger depends on the image alone
             - images without edges get no ink
             - both streams weigh the same
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - Both streams show the same images of a step; released code draws
               the second one from batches that were formed once.
             - `two_streams=False` is plain poisoning: the poisoned set under
               the recipe's augmentation, at half the cost.
             - Released images by index are not taken here; `attacks.stored`
               makes an attack of them and of the clean test images. With H,
               any image can be triggered.
             - Errors on edges and off them are means over these pixels.
             - Crops are 7/8 of the sides, 28 of 32 pixels; each image draws its
               own change. The rotation of the first stage, by 0 degrees in
               released code, is left out, and so is the adversarial stage,
               which BackdoorBench leaves out too.
             - Networks for sides that are no multiples of 16, or of 16 pixels,
               have fewer levels.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        two passes of the model in place of one, and a forward pass of H
             for all images of a batch (0.5 billion multiplications for 32×32 at
             width 64, of PreAct-ResNet18's 0.56); memory: H's weights, 13
             million at width 64. The crafting takes `craft_epochs` of every
             stage, with a pass of H and two of R each

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> hp = PoisonInkHParams(width=1)
  >>> size = sum(x.size for x in jax.tree.leaves(shapes(spec, hp)))
  >>> attack = poison_ink(spec, hp, {'hider': np.ones(size)})
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> x.shape
  (1, 8, 8, 3)

References:
  Zhang et al., Poison Ink: Robust and Invisible Backdoor Attack, IEEE
  Transactions on Image Processing 2022.
  ZJZAC/Poison-Ink
  SCLBD/BackdoorBench: attack/poison_ink.py, resource/poison_ink
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, data, keys, models, training, types
from bdjax.attacks import crafter, poisoning
from bdjax.attacks.crafting import ink, weights
from bdjax.attacks.triggers import edges, levels

_KNOWN = ('hider',)
_STATIC = {'static': True}  # of the crafting, which runs beforehand


@types.hparams
class PoisonInkHParams(poisoning.PoisonHParams):
  """Hyper-parameters of PoisonInk; the defaults are the authors' for 32×32.

  Attributes:
    ink: the color, in grey levels, one per channel.
    edge_level: what an edge is, in grey levels of the Sobel magnitude.
    two_streams: train on the clean set, augmented, and on the poisoned set as
      it is; False = on the poisoned set, augmented.
    width: channels of the hiding network at full resolution.
    reveal_width: channels of the revealing network.
    stages: what images undergo before ink is revealed, one after another:
      'none', 'crop', 'flip'.
    craft_epochs: of each stage.
    craft_batch_size: images per step of it.
    craft_lr: of Adam.
    decay_epochs: after as many epochs of a stage the rate is a tenth.
  """

  ink: tuple[int, ...] = (80, 160, 80)
  edge_level: float = dataclasses.field(default=28.0, metadata=_STATIC)
  two_streams: bool = True
  width: int = 64
  reveal_width: int = 128
  stages: tuple[str, ...] = ('none', 'crop', 'flip')
  craft_epochs: int = 200
  craft_batch_size: int = 32
  craft_lr: float = dataclasses.field(default=2e-4, metadata=_STATIC)
  decay_epochs: int = 80


def poison_ink(
  spec: types.DataSpec,
  hp: PoisonInkHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape, classes and augmentation of the data set.
    hp: hyper-parameters, all static.
    assets: 'hider', float [n], weights and statistics of H in one vector, from
      `craft`.

  Returns:
    The attack; the trigger's parameters are {'hider': {'params', 'stats'},
    'ink': float32 [c] in [0, 1]}.

  Raises:
    MissingAsset: if the asset is not there.
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range or the asset belongs to
      others.
  """
  hp = hp or PoisonInkHParams()
  _check(hp, spec.image_shape)
  vector = crafter.required(
    assets,
    'poison_ink',
    'hider',
    _KNOWN,
    'classifier and model may be None, it is made of images alone',
  )
  params = {
    'hider': weights.like('hider', vector, shapes(spec, hp)),
    'ink': np.asarray(hp.ink, np.float32) / 255,
  }
  net = _network(spec.image_shape, hp)

  def apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    hider, x = params['hider'], image[None]
    secret = edges.inked(x, params['ink'][None], hp.edge_level)
    hidden, _ = net.hide(hider['params'], hider['stats'], x, secret)
    return levels.stored(hidden[0], 'round')

  init = lambda key: jax.tree.map(jnp.asarray, params)
  trigger = types.Trigger(init, apply, 'poison_ink')
  attack = poisoning.from_hparams(trigger, spec, hp)
  return _on_two_streams(attack, spec) if hp.two_streams else attack


def shapes(spec: types.DataSpec, hp: PoisonInkHParams) -> types.PyTree:
  """Abstract weights and statistics of H for the images of a data set."""
  net = _network(spec.image_shape, hp)
  return {
    'params': jax.eval_shape(net.init, keys.root(0))['hide'],
    'stats': jax.eval_shape(net.init_stats),
  }


def craft(
  key: jax.Array,
  classifier: types.Classifier | None,
  model: types.ModelState | None,
  images: types.ByteImages,
  labels: types.Labels | None,
  hp: PoisonInkHParams,
  assets: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Crafts the hiding network.

  Args:
    key: typed key of weights, colors, changes and orders.
    classifier: not used.
    model: not used.
    images: uint8 [N, h, w, c], the training set.
    labels: not used.
    hp: hyper-parameters, those of `CRAFTER.reads`.
    assets: not used.

  Returns:
    {'hider': float32 [n]}.

  Raises:
    ValueError: if a hyper-parameter is out of range.
  """
  del classifier, model, labels, assets
  checks.byte_images(images=images)
  _check(hp, images.shape[1:])
  trained = ink.train(
    keys.stream(key, 'networks'),
    _network(images.shape[1:], hp),
    np.asarray(images),
    color=hp.ink,
    edge_level=hp.edge_level,
    stages=hp.stages,
    epochs=hp.craft_epochs,
    batch_size=hp.craft_batch_size,
    lr=hp.craft_lr,
    decay_epochs=hp.decay_epochs,
  )
  hider = {'params': trained.params['hide'], 'stats': trained.stats}
  return {'hider': weights.flat(hider)}


CRAFTER = crafter.Crafter(
  craft,
  makes=_KNOWN,
  reads=(
    'ink',
    'edge_level',
    'width',
    'reveal_width',
    'stages',
    'craft_epochs',
    'craft_batch_size',
    'craft_lr',
    'decay_epochs',
  ),
  needs='images',
)


def _network(
  image_shape: tuple[int, ...], hp: PoisonInkHParams
) -> models.InkNetworks:
  h, w, c = image_shape
  return models.ink_networks(
    (h, w, c), width=hp.width, reveal_width=hp.reveal_width
  )


def _check(hp: PoisonInkHParams, image_shape: tuple[int, ...]) -> None:
  checks.non_negative(edge_level=hp.edge_level)
  if len(hp.ink) != image_shape[-1] or not set(hp.ink) <= set(range(256)):
    raise ValueError(
      f'`ink={hp.ink}` is no color of images of shape {tuple(image_shape)}; '
      'give a grey level 0 … 255 for each channel.'
    )


def _on_two_streams(attack: types.Attack, spec: types.DataSpec) -> types.Attack:
  """The attack whose model sees clean images too, which alone are augmented."""
  recipe = data.augment_fn(spec)

  def poison_fn(state, batch, key):
    clean = {'clean_image': batch['image'], 'clean_label': batch['label']}
    return attack.poison(state, batch, key) | clean

  def objective_fn(state, classifier, model, batch, key):
    del state
    clean = recipe(batch['clean_image'], keys.per_example(key, batch['index']))
    both = jnp.concatenate([clean, batch['image']])
    logits, model = classifier.apply(model, both, train=True)
    labels = jnp.concatenate([batch['clean_label'], batch['label']])
    return training.cross_entropy(logits, labels), (logits[len(clean) :], model)

  return attack._replace(
    poison=poison_fn,
    objective=objective_fn,
    augment=lambda images, keys: images,
  )
