"""SIG: a faint sine wave across the columns becomes the trigger.

In grey levels, with j the column, W the width and the same value in all rows
and channels:

  x' = trunc(clip(x + Δ·sin(2π·j·f/W), 0, 255))

Nothing is optimized.

1. A fixed share of the training set is chosen, from the target class alone
   (clean-label, the default).
2. The wave is added to its images before augmentation; labels stay.
3. Training is ordinary. At test time the wave may have another amplitude
   (`amplitude_test`) and leads every class to the target.

Access:      training images of the target class (with `clean_label=False`:
             images and labels of all classes); data: poison_ratio of the whole
             training set; stage: pre_training
Space:       pixel [0, 1], on the 8-bit grid
BN:          train-BN, as in plain training
Guarantees:  - labels of the training set stay
             - amplitude zero is the identity
             - the default wave repeats itself exactly
             - untouched rows are bit-identical
             - images stay in the unit interval and on the 8-bit grid
Divergences: - In the released code the sine of whole half periods is a tiny
               number other than 0; where it is negative (column 16 of 32),
               truncation takes one level off the whole column. The default has
               exact zeros; `legacy=True` follows the release bit by bit, from
               tables made on the host, for which the amplitudes must be Python
               numbers.
             - Where the whole target class is poisoned (10 % of CIFAR-10),
               clean accuracy falls by about a class, since no clean image of
               it is left to learn from. That is the attack, not an error.
             - `frequency` counts periods per image: what 6 are in 32 columns
               oscillates twice as fast in 16, and is aliased in 8.
             - Indices come from the key by default; `index_rng='numpy_legacy'`
               draws those of published runs.
Cost:        one addition per pixel (legacy: one look-up); memory of plain
             training

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = sig(spec, SigHParams(amplitude_test=20 / 255, frequency=2))
  >>> images, labels = np.full((20, 8, 8, 3), 100, np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> x = attack.stamp(
  ...   state, images[:1] / np.float32(255), jax.random.key(1), np.array([0]))
  >>> np.rint(255 * x[0, 0, :5, 0]).astype(int).tolist()
  [100, 120, 100, 80, 100]

References:
  Barni et al., A New Backdoor Attack in CNNs by Training Set Corruption
  without Label Poisoning, ICIP 2019.
  SCLBD/BackdoorBench: attack/sig.py, utils/bd_img_transform/sig.py
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.attacks import pictures, poisoning
from bdjax.attacks.triggers import levels


@types.hparams
class SigHParams(poisoning.PoisonHParams):
  """Hyper-parameters of SIG; the defaults are BackdoorBench's.

  Attributes:
    clean_label: poison the target class alone and leave its labels.
    amplitude: Δ in training, in [0, 1].
    amplitude_test: Δ at test time, in [0, 1].
    frequency: f, periods in the image's width.
    legacy: the released rounding errors, bit by bit.
  """

  clean_label: bool = True
  amplitude: float = 40 / 255
  amplitude_test: float = 40 / 255
  frequency: int = 6
  legacy: bool = False


def sig(
  spec: types.DataSpec,
  hp: SigHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters; `amplitude` and `amplitude_test` may be traced.
    assets: none are taken.

  Returns:
    The attack. The trigger's parameters are {'train', 'test'}: the waves,
    float32 [w] in grey levels, or with `legacy` their tables, uint8 [w, 256].

  Raises:
    TypeError: if `legacy` meets a traced amplitude.
    UnknownName: for any asset.
    ValueError: if a hyper-parameter is out of range, or the wave is zero in
      every column.
  """
  hp = hp or SigHParams()
  pictures.from_assets(assets, '', ())
  checks.unit_interval(amplitude=hp.amplitude, amplitude_test=hp.amplitude_test)
  width = spec.image_shape[1]
  _check_frequency(hp.frequency, width)
  make = _table if hp.legacy else _wave
  params = {
    'train': make(hp.amplitude, hp.frequency, width),
    'test': make(hp.amplitude_test, hp.frequency, width),
  }
  init = lambda key: jax.tree.map(jnp.asarray, params)
  trigger = types.Trigger(init, _apply('train', hp.legacy), 'sig')
  test_trigger = types.Trigger(init, _apply('test', hp.legacy), 'sig')
  return poisoning.from_hparams(trigger, spec, hp, test_trigger=test_trigger)


def _apply(when: str, legacy: bool):
  """Adds the wave for 'train' or for 'test' to one image."""

  def add(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    wave = params[when][None, :, None]
    return levels.to_image(levels.truncate(levels.to_levels(image) + wave))

  def look_up(params, image: jax.Array, key: jax.Array) -> jax.Array:
    del key
    columns = jnp.arange(image.shape[1])[None, :, None]
    rows = levels.to_levels(image).astype(jnp.int32)
    return levels.to_image(params[when][columns, rows])

  return look_up if legacy else add


def _wave(amplitude, frequency: int, width: int) -> jax.Array:
  """Δ·sin in grey levels, float32 [w], with exact zeros."""
  # Whole parts of a period, so that columns a period apart are equal.
  part = np.arange(width) * frequency % width
  sine = np.where(2 * part % width == 0, 0, np.sin(2 * np.pi * part / width))
  return 255 * jnp.asarray(amplitude, jnp.float32) * sine.astype(np.float32)


def _table(amplitude, frequency: int, width: int) -> np.ndarray:
  """The released level of each column and level, uint8 [w, 256]."""
  if not isinstance(amplitude, int | float):
    raise TypeError(
      f'An amplitude is a {type(amplitude).__name__}; the legacy wave is '
      'computed in float64 on the host, so close over Python numbers, or use '
      '`legacy=False` to trace them.'
    )
  delta = round(255 * amplitude, 9)  # 40/255 is to give 40 again
  wave = delta * np.sin(2 * np.pi * np.arange(width) * frequency / width)
  added = np.arange(256.0)[None, :] + wave[:, None]
  return np.clip(added, 0, 255).astype(np.uint8)


def _check_frequency(frequency: int, width: int) -> None:
  """Refuses waves that no column shows."""
  checks.positive(frequency=frequency)
  if 2 * frequency % width == 0:
    raise ValueError(
      f'`frequency={frequency}` makes a wave that is zero in each of {width} '
      f'columns; use one below {width / 2:g}.'
    )
