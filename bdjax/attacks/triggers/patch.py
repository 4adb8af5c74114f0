"""Patches: an opaque mark over a part of the image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8

from bdjax import types
from bdjax.attacks.triggers import levels


def patch(image: types.Image, mark: UInt8[Array, 'h w c']) -> jax.Array:
  """Replaces an image wherever the mark is not 0, per channel element.

  Args:
    image: float [h, w, c] in [0, 1].
    mark: uint8 [h, w, c]; 0 leaves the image as it is, so that the darkest
      mark has level 1.

  Returns:
    float [h, w, c]; elements outside of the mark are bit-identical.
  """
  return jnp.where(mark > 0, levels.to_image(mark), image)
