"""Edges: where the brightness of an image changes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_GRAY = (0.299, 0.587, 0.114)


def gray(images: jax.Array) -> Float[Array, 'b h w']:
  """Brightness of images [b, h, w, c]; one channel is its own."""
  if images.shape[-1] == 1:
    return images[..., 0]
  return images @ jnp.asarray(_GRAY, images.dtype)


def sobel(planes: Float[Array, 'b h w']) -> Float[Array, 'b h w']:
  """The Sobel magnitude √((s_h² + s_v²) / 2).

  s_h and s_v are the responses to [1, 2, 1] ⊗ [1, 0, −1] / 4 across and along
  the rows. Borders are mirrored, the outermost pixel included.

  Args:
    planes: any units; the magnitude has them too.

  Returns:
    Magnitudes of the same shape.

  Example:
    >>> step = jnp.repeat(jnp.array([0.0, 8.0]), 3).reshape(1, 1, 6)
    >>> edges = sobel(jnp.tile(step, (1, 3, 1)))[0, 1]
    >>> [round(float(x), 2) for x in edges]
    [0.0, 0.0, 5.66, 5.66, 0.0, 0.0]
  """
  padded = jnp.pad(planes, ((0, 0), (1, 1), (1, 1)), mode='symmetric')
  smooth = lambda x, axis: (
    _part(x, 0, axis) + 2 * _part(x, 1, axis) + _part(x, 2, axis)
  )
  slope = lambda x, axis: _part(x, 0, axis) - _part(x, 2, axis)
  across = smooth(slope(padded, 1), 2) / 4
  along = slope(smooth(padded, 1), 2) / 4
  return jnp.sqrt((across**2 + along**2) / 2)


def is_edge(images: jax.Array, level: float = 28.0) -> Bool[Array, 'b h w 1']:
  """Where the magnitude exceeds a number of grey levels.

  Args:
    images: float [b, h, w, c] in [0, 1].
    level: in grey levels 0 … 255.

  Returns:
    bool [b, h, w, 1].
  """
  return (sobel(255 * gray(images)) > level)[..., None]


def inked(
  images: jax.Array, color: jax.Array, level: float = 28.0
) -> jax.Array:
  """The edges of images in a color, on white.

  Args:
    images: float [b, h, w, c] in [0, 1].
    color: [b, c] or [1, c], in [0, 1].
    level: what an edge is, in grey levels.

  Returns:
    float [b, h, w, c].
  """
  white = jnp.ones_like(images)
  return jnp.where(is_edge(images, level), color[:, None, None, :], white)


def _part(x: jax.Array, start: int, axis: int) -> jax.Array:
  """All but two entries of an axis, from `start` on."""
  return jax.lax.slice_in_dim(x, start, start + x.shape[axis] - 2, 1, axis)
