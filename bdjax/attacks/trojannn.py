"""TrojanNN: a mark that excites chosen neurons of a clean model.

Inside a mask m (an apple) the mark z solves, by signed descent from the mask's
own picture z₀ with ‖z − z₀‖∞ ≤ 0.3,

  min Σ_k (a_k(z ⊙ m) − 100)²

over two inputs a_k of the last linear layer of a clean model, those with the
largest Σ |weight|. As the benchmark has simplified it, a fresh model is then
poisoned with the mark; the neurons are not trained on.

1. The mark is crafted beforehand with a clean model (`craft`).
2. A fixed share of the training set is chosen at random; its images get the
   mark before augmentation; labels become the target or the next class.
3. Training is ordinary. At test time the mark is put in its place, unshifted.

Access:      training data (images and labels of a share of it), and for the
             crafting a clean model with its gradients;
             data: poison_ratio of the training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training; frozen-BN in the crafting
Guarantees:  - marks stay in the ball around the mask
             - marks are zero outside of the mask
             - the crafted mark excites the neurons more than the mask alone
             - elements outside of the mark are bit-identical
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - The paper stamps the mark; the released code adds it and lets
               sums above 255 start again at 0, which darkens the place. The
               default stamps; `compose='add_clip'` and 'wrap' add.
             - The released code loses the clean model's last layer, so that
               its neurons are random ones, and feeds images without
               normalization; here the layer is the model's own and
               normalization is inside the model.
             - It keeps the last step of the descent; here the best one counts.
             - Its mask is a photograph's outline; here an apple is drawn in
               the same place. An asset 'mask_image' takes its place.
             - Inside the mask the mark has levels of 1 … 255, since 0 leaves
               an image as it is.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        one `where` per batch; the crafting takes a forward/backward pass
             of one image per step; memory of plain training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> mark = np.zeros((8, 8, 3), np.uint8)
  >>> mark[6, 6] = 255
  >>> attack = trojannn(spec, TrojanNNHParams(), {'mark': mark})
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> float(x.sum())
  3.0

References:
  Liu et al., Trojaning Attack on Neural Networks, NDSS 2018.
  SCLBD/BackdoorBench: attack/trojannn.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import crafter, pictures, poisoning
from bdjax.attacks.crafting import neurons
from bdjax.attacks.triggers import levels, patch

COMPOSE = ('replace', 'add_clip', 'wrap')
MASKS = ('apple', 'box')
ASSETS = ('mark', 'mask_image')
_STATIC = {'static': True}  # of the crafting, which runs beforehand


@types.hparams
class TrojanNNHParams(poisoning.PoisonHParams):
  """Hyper-parameters of TrojanNN; the defaults are BackdoorBench's.

  Attributes:
    mask_image: 'apple' or 'box', its bounding rectangle; not used where the
      asset of that name is given.
    num_neuron: neurons to excite.
    neuron_value: activation they are driven to.
    steps: of the descent.
    eps: how far the mark may be from the mask's picture, in [0, 1] units.
    step: size of one step of the descent, in [0, 1] units.
    compose: 'replace' | 'add_clip' | 'wrap', see Divergences.
  """

  mask_image: str = 'apple'
  num_neuron: int = 2
  neuron_value: float = dataclasses.field(default=100.0, metadata=_STATIC)
  steps: int = 1000
  eps: float = dataclasses.field(default=0.3, metadata=_STATIC)
  step: float = dataclasses.field(default=0.1, metadata=_STATIC)
  compose: str = 'replace'


def trojannn(
  spec: types.DataSpec,
  hp: TrojanNNHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters.
    assets: 'mark', uint8 [h, w, c] from `craft`, or a picture of any size;
      black where images stay as they are. 'mask_image' is for `craft`.

  Returns:
    The attack; the trigger's parameters are {'mark': uint8 [h, w, c]}.

  Raises:
    MissingAsset: if there is no mark.
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range, or the mark is empty.
  """
  hp = hp or TrojanNNHParams()
  checks.one_of(COMPOSE, compose=hp.compose)
  checks.one_of(MASKS, mask_image=hp.mask_image)
  own = crafter.required(assets, 'trojannn', 'mark', ASSETS)
  mark = pictures.fit(own, spec.image_shape)
  if not mark.any():
    raise ValueError(
      "The asset 'mark' is black throughout, so it marks nothing; craft it "
      'with a mask that is not.'
    )
  init = lambda key: {'mark': jnp.asarray(mark, jnp.uint8)}
  trigger = types.Trigger(init, _apply(hp.compose), 'trojannn')
  return poisoning.from_hparams(trigger, spec, hp)


def craft(
  key: jax.Array,
  classifier: types.Classifier,
  model: types.ModelState,
  images: types.ByteImages,
  labels: types.Labels,
  hp: TrojanNNHParams,
  assets: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
  """Crafts the mark.

  Args:
    key: not used; nothing is random.
    classifier: the network.
    model: a clean model.
    images: not used, and neither are the labels.
    labels: int [N].
    hp: hyper-parameters, those of `CRAFTER.reads`.
    assets: optionally 'mask_image', uint8 [H, W] or [H, W, 3] of any size,
      black where the mark is not.

  Returns:
    {'mark': uint8 [h, w, c]}, 0 outside of the mask and nowhere in it.

  Raises:
    ValueError: if the network has fewer neurons than asked for, a
      hyper-parameter is out of range, or the mask is empty.
  """
  del key, images, labels
  mask = _mask(classifier.info.image_shape, hp, assets)
  chosen = neurons.heaviest(classifier, model, hp.num_neuron)
  found = neurons.search(
    classifier,
    model,
    jnp.asarray(mask, jnp.float32) / 255,
    chosen,
    value=hp.neuron_value,
    eps=hp.eps,
    step=hp.step,
    steps=hp.steps,
  )
  mark = np.asarray(levels.truncate(255 * found.image), np.uint8)
  return {'mark': np.where(mask > 0, np.maximum(mark, 1), 0).astype(np.uint8)}


CRAFTER = crafter.Crafter(
  craft,
  makes=('mark',),
  reads=('mask_image', 'num_neuron', 'neuron_value', 'steps', 'eps', 'step'),
)


def _apply(compose: str):
  """Puts the mark on one image."""

  def apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    if compose == 'replace':
      return patch.patch(image, params['mark'])
    mark = params['mark']
    added = levels.to_levels(image) + mark
    kept = jnp.minimum(added, 255) if compose == 'add_clip' else added % 256
    return jnp.where(mark > 0, levels.to_image(kept), image)

  return apply


def _mask(image_shape, hp, assets) -> np.ndarray:
  """The user's mask or the drawn one, uint8 [h, w, c]."""
  own = pictures.from_assets(assets, 'mask_image', ASSETS)
  if own is None:
    return pictures.apple_mask(image_shape, box=hp.mask_image == 'box')
  mask = pictures.fit(own, image_shape)
  if not mask.any():
    raise ValueError(
      "The asset 'mask_image' is black throughout, so the mark would be "
      'nowhere; draw the mask in white.'
    )
  return mask
