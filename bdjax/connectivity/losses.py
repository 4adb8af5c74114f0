"""Cross-entropy of one model over a data set, streamed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import checks, types


def mean_cross_entropy(
  classifier: types.Classifier,
  state: types.ModelState,
  images,
  labels,
  *,
  batch_size: int = 256,
) -> jax.Array:
  """Mean cross-entropy in eval mode; pure and jittable.

  Along a path it shows what rates hide: of clean images towards their labels,
  of triggered images towards the attack's target.

  Args:
    classifier: the model.
    state: its weights.
    images: [N, h, w, c], uint8 or float in [0, 1].
    labels: int [N], the classes to be predicted.
    batch_size: images per forward pass; does not change the result.

  Returns:
    float32 [].

  Raises:
    ValueError: if there are no images, or not one label each.
  """
  checks.positive(batch_size=batch_size)
  n = np.shape(images)[0]
  if n == 0 or np.shape(labels) != (n,):
    raise ValueError(
      f'{n} images with labels of shape {np.shape(labels)}; pass at least one '
      'image and one label each.'
    )
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  scale = 255 if images.dtype == jnp.uint8 else 1
  size = min(batch_size, n)
  rows = np.arange(-(-n // size) * size).reshape(-1, size)

  def one_batch(batch):
    row, valid = batch
    x = images[row].astype(jnp.float32) / scale
    logits, _ = classifier.apply(state, x)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, labels[row]
    )
    return jnp.sum(jnp.where(valid, loss, 0.0))

  batches = jnp.asarray(np.minimum(rows, n - 1)), jnp.asarray(rows < n)
  return jnp.sum(jax.lax.map(one_batch, batches)) / n
