"""Images in static batches, and the taps of a forward pass."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types


def to_unit(images) -> jax.Array:
  """Float32 pixels in [0, 1]; bytes are divided by 255, floats kept."""
  images = jnp.asarray(images)
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  return images.astype(jnp.float32)


def batched(images, batch_size: int) -> tuple[jax.Array, jax.Array]:
  """Cuts images into equal batches, the last one filled up by repetition.

  Args:
    images: [n, ...], of any dtype.
    batch_size: images per batch; a smaller data set is one batch.

  Returns:
    The batches [k, b, ...] and a bool mask [k, b] that is False on filling.
  """
  images = jnp.asarray(images)
  n = images.shape[0]
  size = min(batch_size, n)
  count = -(-n // size)
  position = np.arange(count * size)
  batches = images[np.minimum(position, n - 1)]
  batches = batches.reshape(count, size, *images.shape[1:])
  return batches, jnp.asarray(position < n).reshape(count, size)


def activations(
  classifier: types.Classifier,
  state: types.ModelState,
  images,
  taps: Sequence[str],
) -> dict[str, jax.Array]:
  """The wanted taps of one eval-mode forward pass, in float32.

  Matmuls and convolutions run at the highest precision, whatever the caller
  trains with: similarities of rounded features are off in the third digit.

  Args:
    classifier: the model as it is deployed.
    state: its weights and statistics.
    images: [b, h, w, c], uint8 or float in [0, 1].
    taps: names out of `classifier.info.taps`.

  Returns:
    One array [b, ..., channels] per tap.

  Raises:
    ValueError: for a name that is no tap of the classifier.
  """
  with jax.default_matmul_precision('highest'):
    features = classifier.features(state, to_unit(images))
  for tap in taps:
    if tap not in features:
      raise ValueError(
        f"'{tap}' is no tap of {classifier.info.arch}. "
        f'{checks.suggest(tap, features)}'
      )
  return {tap: features[tap].astype(jnp.float32) for tap in taps}
