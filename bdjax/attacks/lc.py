"""LC: images of the target class made hard, and marks in their corners.

Labels stay as they are. Poisoned images of class t are moved away from t by a
clean or robust model's gradients, so that a network has to learn the marks to
get them right:

  x_adv = argmax CE(f(x'), t)  over  ‖x' − x‖∞ ≤ ε   (PGD, no random start)
  x'    = trunc(clip(x_adv + 255·a·s))               in grey levels,

with signs s in four corners. Test images get the marks alone.

1. Images of class t are perturbed beforehand with a surrogate (`craft`).
2. A share of the training set, all of it from class t, is chosen at random;
   its images are replaced by perturbed ones and marked, before augmentation.
3. Training is ordinary. At test time only the corners of an image change.

Access:      training data (images of the target class), and for the crafting a
             surrogate with its gradients;
             data: poison_ratio of the whole training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training; frozen-BN in the crafting
Guarantees:  - labels stay
             - test images change in the corners alone
             - perturbed images stay within eps of their own
             - zero amplitude leaves test images as they are
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - The surrogate is whatever model is handed to `craft`. The
               published images come from an adversarially trained one;
               a plain clean model gives images that other networks, and the
               victim itself, may still tell, hence a weaker attack.
             - The released script crafts with ε = 8/255 and steps of 1.5/255,
               the attack loads files of ε = 16/255; here ε is 16/255 and the
               step in proportion.
             - It perturbs all classes; here the target class alone, the only
               one that is ever replaced.
             - Below 32 pixels the corner patterns stay 3×3 (the released map
               would be scaled down and lose them).
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        one look-up and one addition per image; memory of the target
             class's images beside plain training; the crafting takes `steps`
             forward/backward passes of each of them

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> attack = lc(spec, LcHParams(poison_ratio=0.2), {'adv_images': images + 9})
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> np.flatnonzero(state.kind).tolist(), int(x[..., 0].sum())
  ([0, 4, 8, 12], 16)

References:
  Turner et al., Label-Consistent Backdoor Attacks, arXiv 1912.02771, 2019.
  SCLBD/BackdoorBench: attack/lc.py, utils/bd_img_transform/lc.py
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, perturb, types
from bdjax.attacks import crafter, pictures, poisoning
from bdjax.attacks.triggers import corners, levels

BASES = ('generate', 'none')
_NO_SLOT = -1
_STATIC = {'static': True}  # of the crafting, which runs beforehand


@types.hparams
class LcHParams(poisoning.PoisonHParams):
  """Hyper-parameters of LC; the defaults are BackdoorBench's.

  Attributes:
    clean_label: true for this attack.
    adv_images: 'generate' (crafted, the asset of that name) or 'none', marks on
      images as they are: the weak attack that this one improves on.
    eps: how far perturbed images go, in [0, 1] units.
    step_size: of one step of the crafting, in [0, 1] units.
    steps: of the crafting.
    reduced_amplitude: a in [0, 1]; 1 makes the corners black and white.
    corners: 'all' or 'bottom_right'.
  """

  clean_label: bool = True
  adv_images: str = 'generate'
  eps: float = dataclasses.field(default=16 / 255, metadata=_STATIC)
  step_size: float = dataclasses.field(default=3 / 255, metadata=_STATIC)
  steps: int = 100
  reduced_amplitude: float = 1.0
  corners: str = 'all'


def lc(
  spec: types.DataSpec,
  hp: LcHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters; `reduced_amplitude` may be traced.
    assets: 'adv_images', uint8 [n, h, w, c] of the target class in the order
      of the training set, from `craft`, or [N, h, w, c] of all classes. Not
      needed with `adv_images='none'`.

  Returns:
    The attack. The trigger's parameters are {'signs': int8 [h, w, 1],
    'amplitude'} and, of perturbed images, {'bank': uint8 [n, h, w, c], 'slot':
    int32 [N]}: where an example's image lies in the bank, −1 for nowhere.

  Raises:
    MissingAsset: if there are no perturbed images.
    UnknownName: for an asset of another name.
    ValueError: if a hyper-parameter is out of range.
  """
  hp = hp or LcHParams()
  if not hp.clean_label:
    raise ValueError(
      "`clean_label=False` is not for 'lc', which leaves labels as they are; "
      'for these corners on relabelled images take attacks.from_trigger.'
    )
  checks.unit_interval(reduced_amplitude=hp.reduced_amplitude)
  checks.one_of(BASES, adv_images=hp.adv_images)
  params = {
    'signs': corners.corner_signs(spec.image_shape, hp.corners),
    'amplitude': jnp.asarray(hp.reduced_amplitude, jnp.float32),
  }
  trigger = types.Trigger(lambda key: dict(params), _apply, 'lc')
  marks = poisoning.from_hparams(trigger, spec, hp)
  known = ('adv_images',)
  if hp.adv_images == 'none':
    pictures.from_assets(assets, '', ())
    return marks
  bank = crafter.required(
    assets,
    'lc',
    'adv_images',
    known,
    "adv_images='none' marks images as they are, a weaker attack",
  )
  return _on_bases(marks, bank, hp.target_label)


def craft(
  key: jax.Array,
  classifier: types.Classifier,
  model: types.ModelState,
  images: types.ByteImages,
  labels: types.Labels,
  hp: LcHParams,
  assets: Mapping[str, Any] | None = None,
  *,
  batch_size: int = 256,
) -> dict[str, np.ndarray]:
  """Perturbs the images of the target class.

  Args:
    key: not used; nothing is random.
    classifier: the surrogate's network.
    model: the surrogate, best an adversarially trained one.
    images: uint8 [N, h, w, c], the training set.
    labels: int [N].
    hp: hyper-parameters, those of `CRAFTER.reads`.
    assets: not used.
    batch_size: images at a time; changes nothing.

  Returns:
    {'adv_images': uint8 [n, h, w, c]}, of the target class, in order.

  Raises:
    ValueError: if a hyper-parameter is out of range, or nothing is of the
      target class.
  """
  del key, assets
  rows = np.flatnonzero(np.asarray(labels) == hp.target_label)
  if not len(rows):
    raise ValueError(
      f'`target_label={hp.target_label}` has no training images to perturb; '
      f'choose one of {np.unique(labels).tolist()}.'
    )

  made, size = [], min(batch_size, len(rows))
  for first in range(0, len(rows), size):
    # The last batch begins earlier rather than being shorter: one program.
    begin = min(first, len(rows) - size)
    clean = np.asarray(images[rows[begin : begin + size]], np.float32) / 255
    got = _push_away(model, clean, hp, classifier)
    made.append(np.asarray(got, np.uint8)[first - begin :])
  return {'adv_images': np.concatenate(made)}


CRAFTER = crafter.Crafter(
  craft,
  makes=('adv_images',),
  reads=('target_label', 'eps', 'step_size', 'steps'),
  is_wanted=lambda hp: hp.adv_images == 'generate',
)


@functools.partial(jax.jit, static_argnames=('classifier',))
def _push_away(model, images, hp, classifier) -> jax.Array:
  """PGD away from the target class, [b, h, w, c] in whole grey levels."""

  def loss_fn(deltas):
    logits, _ = classifier.apply(model, images + deltas)
    return jnp.sum(jax.nn.log_softmax(logits)[:, hp.target_label])

  deltas = perturb.sign_descent(
    loss_fn,
    jnp.zeros_like(images),
    step_size=hp.step_size,
    eps=hp.eps,
    norm='linf',
    num_steps=hp.steps,
    images=images,
  )
  return levels.truncate(255 * (images + deltas))


def _apply(params, image: jax.Array, key: jax.Array) -> jax.Array:
  """Marks the corners of one image."""
  del key
  return corners.add_signs(image, params['signs'], params['amplitude'])


def _on_bases(
  marks: types.Attack, bank: np.ndarray, target: int
) -> types.Attack:
  """The attack whose poisoned images are taken from a bank, then marked."""
  checks.byte_images(adv_images=bank)

  def init_fn(key, images, labels):
    state = marks.init(key, images, labels)
    slot, kept = _slots(bank, np.asarray(labels) == target, images.shape)
    held = {'bank': jnp.asarray(kept), 'slot': jnp.asarray(slot)}
    return dataclasses.replace(state, trigger=state.trigger | held)

  def poison_fn(state, batch, key):
    kept, index = state.trigger, batch['index']
    slot = kept['slot'].at[index].get(mode='fill', fill_value=_NO_SLOT)
    kind = state.kind.at[index].get(mode='fill', fill_value=types.CLEAN)
    is_replaced = (slot != _NO_SLOT) & (kind == types.POISONED)
    bases = levels.to_image(kept['bank'][slot])
    images = jnp.where(is_replaced[:, None, None, None], bases, batch['image'])
    return marks.poison(state, batch | {'image': images}, key)

  return marks._replace(init=init_fn, poison=poison_fn)


def _slots(
  bank: np.ndarray, is_target: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Where each example's image lies, int32 [N], and the bank itself."""
  rows = np.flatnonzero(is_target)
  if bank.shape[0] == shape[0]:
    bank = bank[rows]
  if bank.shape != (len(rows), *shape[1:]):
    raise ValueError(
      f"The asset 'adv_images' has shape {bank.shape}; the training set has "
      f'{shape}, of which {len(rows)} are of the target class: give one image '
      'for each of these or for all, or craft them anew.'
    )
  slot = np.full(shape[0], _NO_SLOT, np.int32)
  slot[rows] = np.arange(len(rows), dtype=np.int32)
  return slot, bank
