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

from bdjax import checks, keys, types
from bdjax.reactivation import pools

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


def pool_of(
  inputs: str,
  key: jax.Array,
  attack: types.Attack,
  attack_state: types.AttackState,
  images,
  labels,
  size: int,
) -> pools.Pool:
  """The pool of `Setting.inputs`; see `pools.triggered` and `pools.clean`."""
  if inputs == 'clean':
    return pools.clean(key, attack, images, labels, size)
  return pools.triggered(key, attack, attack_state, images, labels, size)


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
