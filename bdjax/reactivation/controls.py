"""Is it re-activation, or just a universal adversarial perturbation?

A perturbation that sends triggered images to the target may owe nothing to
the backdoor. So the same attack runs in settings where no backdoor can help,
with the same key, eps, steps and pool size:

  inputs     on the attacked model    on the defended model    on a clean model
  triggered  the backdoor itself      reactivated_asr          (A)
  clean      -                        (B)                      -

(A) is control_clean_model_asr, (B) is control_clean_input_asr. `GRID` lists
all six cells, `REQUIRED` the three that have a name in every record.

The re-activation gap is reactivated_asr − control_clean_input_asr. Both are
rates over the same images, those the trigger leads away from their class: the
pools, and the evaluation by `eval.count`, leave out the others.

References:
  Zhu, Liang, Wu, Breaking the False Sense of Security in Backdoor Defense
  through Re-Activation Attack, NeurIPS 2024, Tables 9-11. The clean-model
  control is ours.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, keys, types

Stamp = Callable[..., jax.Array]  # (images float, key, index) -> images


class Setting(NamedTuple):
  """One cell of the grid.

  Attributes:
    inputs: what the pool and the test images carry besides the perturbation.
    model: which model is attacked.
    field: name of its attack success rate in a record.
  """

  inputs: Literal['triggered', 'clean']
  model: Literal['attacked', 'defended', 'clean']
  field: str


GRID = (
  Setting('triggered', 'attacked', 'triggered_attacked_asr'),
  Setting('triggered', 'defended', 'reactivated_asr'),
  Setting('triggered', 'clean', 'control_clean_model_asr'),
  Setting('clean', 'attacked', 'clean_attacked_asr'),
  Setting('clean', 'defended', 'control_clean_input_asr'),
  Setting('clean', 'clean', 'clean_clean_asr'),
)
REQUIRED = tuple(
  s
  for s in GRID
  if s.field
  in ('reactivated_asr', 'control_clean_input_asr', 'control_clean_model_asr')
)


class Pool(NamedTuple):
  """Images a re-activation attack learns from.

  Attributes:
    images: uint8 [size, h, w, c].
    labels: int32 [size], the class each image is to be sent to.
    index: int32 [size], positions in the training set, ascending.
  """

  images: np.ndarray
  labels: np.ndarray
  index: np.ndarray


def triggered_pool(
  key: jax.Array,
  attack: types.Attack,
  attack_state: types.AttackState,
  images,
  labels,
  size: int,
) -> Pool:
  """Training images with the trigger, and the attack's targets for them.

  Drawn from all images that the trigger leads away from their class; the
  official code draws from the stored poisoned ones, which clean-label attacks
  do not have.

  Args:
    key: typed key; `clean_pool` draws the same images from the same key.
    attack: the attack that was implanted.
    attack_state: its state after training.
    images: training images, uint8 [N, h, w, c].
    labels: their true classes, int [N].
    size: images to draw.

  Returns:
    The pool; triggered images are rounded to bytes.

  Raises:
    ValueError: if the trigger leads away fewer than `size` images.
  """
  pool = clean_pool(key, attack, images, labels, size)
  x = jnp.asarray(pool.images, jnp.float32) / 255
  stamp_key = keys.stream(key, 'trigger')
  stamped = attack.stamp(attack_state, x, stamp_key, jnp.asarray(pool.index))
  stamped = np.rint(np.asarray(stamped) * 255).clip(0, 255).astype(np.uint8)
  return pool._replace(images=stamped)


def clean_pool(
  key: jax.Array, attack: types.Attack, images, labels, size: int
) -> Pool:
  """The same training images without the trigger.

  Args:
    key: typed key.
    attack: says which class each image is to be sent to.
    images: training images, uint8 [N, h, w, c].
    labels: their true classes, int [N].
    size: images to draw.

  Returns:
    The pool: images whose target is not their own class.

  Raises:
    ValueError: if there are fewer than `size` such images.
  """
  checks.typed_key(key=key)
  checks.byte_images(images=images)
  checks.positive(size=size)
  labels = np.asarray(labels, np.int32)
  target = np.asarray(attack.relabel(jnp.asarray(labels)), np.int32)
  eligible = np.flatnonzero(target != labels)
  if size > eligible.size:
    raise ValueError(
      f'A pool of {size} images from {eligible.size} that the attack leads '
      f'away from their class; use pool_size={eligible.size} or fewer.'
    )
  bits = jax.random.bits(keys.stream(key, 'pool'), (eligible.size,))
  order = np.argsort(np.asarray(bits), kind='stable')[:size]
  index = np.sort(eligible[order]).astype(np.int32)
  return Pool(np.asarray(images[index]), target[index], index)


def pool_of(
  setting: Setting,
  key: jax.Array,
  attack: types.Attack,
  attack_state: types.AttackState,
  images,
  labels,
  size: int,
) -> Pool:
  """The pool of one setting; see `triggered_pool` and `clean_pool`."""
  if setting.inputs == 'clean':
    return clean_pool(key, attack, images, labels, size)
  return triggered_pool(key, attack, attack_state, images, labels, size)


def perturbed_stamp(
  stamp: Stamp | None, trigger: types.Trigger, params: types.PyTree
) -> Stamp:
  """A stamp with a perturbation on top, for `eval.count`.

  Args:
    stamp: the original trigger, (images, key, index) -> images; None for the
      control on clean inputs.
    trigger: what the re-activation attack learned to put on top.
    params: its parameters, the final extra of the attack.

  Returns:
    (images, key, index) -> images. The original trigger sees the key it would
    see alone, so that a zero perturbation changes nothing.
  """

  def stamped(images, key, index):
    if stamp is not None:
      images = stamp(images, key, index)
    own = keys.per_example(keys.stream(key, 'perturbation'), index)
    return jax.vmap(lambda x, k: trigger.apply(params, x, k))(images, own)

  return stamped


def noisy_stamp(stamp: Stamp, amplitude: float | jax.Array) -> Stamp:
  """A stamp with uniform noise on top; who survives it is no accident.

  Args:
    stamp: (images, key, index) -> images.
    amplitude: the noise is U[−amplitude, amplitude] per entry, pixel units.

  Returns:
    (images, key, index) -> images in [0, 1]; an image's noise depends on the
    key and its index alone.
  """
  checks.pixel_budget('linf', amplitude=amplitude)

  def stamped(images, key, index):
    images = stamp(images, key, index)
    own = keys.per_example(keys.stream(key, 'noise'), index)
    draw = lambda k: jax.random.uniform(
      k, images.shape[1:], minval=-1.0, maxval=1.0
    )
    return jnp.clip(images + amplitude * jax.vmap(draw)(own), 0, 1)

  return stamped


def reactivation_gap(rates: Mapping[str, float | None]) -> float | None:
  """reactivated_asr − control_clean_input_asr; None where one is missing.

  Args:
    rates: mapping from `Setting.field` to a rate.

  Returns:
    A number in [−1, 1], large where the backdoor is what was re-activated.
  """
  ours, control = (
    rates.get('reactivated_asr'),
    rates.get('control_clean_input_asr'),
  )
  return None if ours is None or control is None else ours - control
