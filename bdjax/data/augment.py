"""Random crop and flip, per example, as pure functions of keys.

Crop and flip are one gather with computed row and column numbers; pixels that
fall outside are black, as where a PIL image is padded before it is normalized.

Cost: on two CPU cores, 128 images of 32x32x3 inside a scan, beyond an identity
body: this gather 0.35 ms, a mapped dynamic slice 0.9 ms, two one-hot matrix
products 2.5 ms, a vmapped dynamic slice 6.7 ms, selections among all shifts
over 20 ms; drawing shifts and flips 0.3 ms.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import types


def to_float(images) -> jax.Array:
  """uint8 images as float32 in [0, 1]: x / 255.

  Args:
    images: uint8 [..., h, w, c], NumPy or JAX.

  Returns:
    float32 of the same shape; round(255 · x) gives the bytes back.

  Raises:
    TypeError: if the images are not uint8, so as never to divide twice.
  """
  if images.dtype != jnp.uint8:
    raise TypeError(
      f'`images` have dtype {images.dtype}; to_float takes uint8. Float '
      'images in [0, 1] need no conversion.'
    )
  return jnp.asarray(images).astype(jnp.float32) / 255


def crop_flip(
  images: jax.Array, shift: jax.Array, mirror: jax.Array
) -> jax.Array:
  """Moves each image by a shift, fills with zeros, then mirrors some.

  Output pixel (i, j) is input pixel (i + dy, j + dx), 0 outside the image;
  with `mirror` j then counts from the right.

  Args:
    images: float [b, h, w, c].
    shift: int [b, 2], (dy, dx) in pixels.
    mirror: bool [b], left-right flip after the shift.

  Returns:
    Images [b, h, w, c].
  """
  b, h, w, _ = images.shape
  cols = jnp.arange(w)[None]
  cols = jnp.where(mirror[:, None], w - 1 - cols, cols) + shift[:, 1:]
  rows = jnp.arange(h)[None] + shift[:, :1]
  inside_rows, inside_cols = (rows >= 0) & (rows < h), (cols >= 0) & (cols < w)
  moved = images[
    jnp.arange(b)[:, None, None],
    jnp.clip(rows, 0, h - 1)[:, :, None],
    jnp.clip(cols, 0, w - 1)[:, None, :],
  ]
  inside = inside_rows[:, :, None, None] & inside_cols[:, None, :, None]
  return jnp.where(inside, moved, jnp.zeros((), images.dtype))


def augment_fn(
  spec: types.DataSpec,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the data set's training augmentation.

  Guarantees:
    - each image depends on its own key alone, whatever batch it is in
    - a data set without a recipe gets the identity
    - the crop offset is uniform over (2·crop_padding + 1)² positions

  Args:
    spec: `crop_padding` and `flip` are read.

  Returns:
    (images float [b, h, w, c], typed keys [b]) -> images; jittable.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from bdjax.data import specs
    >>> augment = augment_fn(specs.SPECS['cifar10'])
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> augment(jnp.ones((2, 32, 32, 3)), keys).shape
    (2, 32, 32, 3)
  """
  padding, flip = spec.crop_padding, spec.flip
  if not padding and not flip:
    return lambda images, keys: images

  def draw(key):
    shift_key, flip_key = jax.random.split(key)
    shift = jax.random.randint(shift_key, (2,), -padding, padding + 1)
    mirror = jax.random.bernoulli(flip_key) if flip else jnp.asarray(False)
    return shift, mirror

  return lambda images, keys: crop_flip(images, *jax.vmap(draw)(keys))
