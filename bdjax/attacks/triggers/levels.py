"""The 8-bit grid: triggers are stored as bytes, also when nothing is stored.

Published poison passes through uint8 images, so formulas of static triggers
are written in grey levels 0 … 255 and end on whole levels.
"""

import jax
import jax.numpy as jnp

from bdjax import checks

STORED_MODES = ('trunc', 'round', 'none')

# An exact whole number may come out of float32 arithmetic a rounding error
# below itself, and differently so in fused code; truncation would then lose a
# whole level here and not there. The nudge is above such errors (6e-5) and
# below the steps of blend weights of up to three decimals (1e-3).
NUDGE = 2.0**-12
# The same for images read between their pixels, whose coordinates are off by
# a rounding error times the contrast; no fraction of 1/255 is lifted over it.
_RESAMPLED = 2.0**-8


def to_levels(image: jax.Array) -> jax.Array:
  """Grey levels 0 … 255 of an image in [0, 1], as floats.

  Rounds, because 255·(k/255) may fall just below k.
  """
  return jnp.round(255 * image)


def truncate(levels: jax.Array) -> jax.Array:
  """Clips to 0 … 255 and drops the fraction, as a cast to uint8 does."""
  return jnp.floor(jnp.clip(levels, 0, 255) + NUDGE)


def stored(image: jax.Array, mode: str) -> jax.Array:
  """An image as it comes back from a file of 8 bits.

  Args:
    image: float in [0, 1], any shape.
    mode: 'trunc' drops the fraction of a grey level, as released codes do when
      they write their triggered test images; 'round'; 'none' keeps floats.

  Returns:
    float of the same shape in [0, 1].
  """
  checks.one_of(STORED_MODES, quantize_mode=mode)
  image = jnp.clip(image, 0, 1)
  if mode == 'none':
    return image
  if mode == 'round':
    return to_image(to_levels(image))
  return to_image(jnp.floor(255 * image + _RESAMPLED))


def to_image(levels: jax.Array) -> jax.Array:
  """The image in [0, 1] of grey levels 0 … 255, of any dtype."""
  return levels.astype(jnp.float32) / 255
