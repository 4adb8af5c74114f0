"""Generated triggers: losses of their generator, and batches that carry them.

The generator makes an image of an image. It is first taught to be an identity
and then, as an attacker, to move the features that a mask calls suspicious.
All distances of images are in the model's normalized units.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax import checks, types

_NEAR = 0.1  # image MSE from which pretraining is content
_WEIGHTS = (100.0, 0.01)  # of the image MSE above and below


def identity_loss(
  clean: tuple[jax.Array, jax.Array],
  made: tuple[jax.Array, jax.Array],
  distance: jax.Array,
) -> jax.Array:
  """What teaches a generator to be an identity.

    CE(softmax f(x), softmax f(Gx)) + MSE(φ(x), φ(Gx)) + w·distance

  with w = 100 where the distance is above 0.1, else 0.01. The cross-entropy
  takes probabilities in place of logits, as in the release: softmax is applied
  twice to the clean ones. Those of the generated images are its target.

  Args:
    clean: logits [b, n] and features of the images.
    made: the same of what the generator made of them.
    distance: [], MSE of the images in normalized units.

  Returns:
    A scalar.

  References:
    AISafety-HKUST/stable_backdoor_purification: fine_tune/BTIDBF/pretrain.py
  """
  p, q = (jax.nn.softmax(logits) for logits, _ in (clean, made))
  agreement = -jnp.mean(jnp.sum(q * jax.nn.log_softmax(p), -1))
  features = jnp.mean((clean[1] - made[1]) ** 2)
  return (
    agreement + features + jnp.where(distance > _NEAR, *_WEIGHTS) * distance
  )


def attacker_loss(
  benign: jax.Array,
  backdoor: jax.Array,
  distance: jax.Array,
  image_bound: float | jax.Array,
  feature_bound: float | jax.Array,
) -> jax.Array:
  """What a generator minimizes as the attacker.

  Args:
    benign: [], MSE of the features that the mask keeps.
    backdoor: [], MSE of the others.
    distance: [], MSE of the images in normalized units.
    image_bound: largest distance at which it goes for features.
    feature_bound: largest `benign` at which it does.

  Returns:
    The distance where a bound is exceeded, else 0.01·benign − backdoor.
  """
  is_far = (distance > image_bound) | (benign > feature_bound)
  # Both are finite, so the branch not taken cannot spoil the gradient.
  return jnp.where(is_far, distance, 0.01 * benign - backdoor)


def normalized_mse(
  a: types.Images, b: types.Images, std: tuple[float, ...]
) -> jax.Array:
  """Mean squared difference of images [b, h, w, c] in units of std [c]."""
  return jnp.mean(((a - b) / jnp.asarray(std).reshape(1, 1, 1, -1)) ** 2)


def replace_share(
  key: jax.Array,
  images: types.Images,
  change: Callable[[jax.Array, jax.Array], jax.Array],
  share: float,
) -> types.Images:
  """Changes ⌊share·b⌋ + 1 images of a batch, drawn without replacement.

  Args:
    key: typed key.
    images: [b, h, w, c].
    change: (images [k, h, w, c], their rows in the batch, int [k]) -> images of
      the same shape.
    share: in (0, 1], static.

  Returns:
    [b, h, w, c], all others bit-identical and in place.

  Raises:
    ValueError: for a share outside (0, 1].
  """
  checks.typed_key(key=key)
  checks.fraction(share=share)
  b = len(images)
  count = min(int(share * b + 1e-9) + 1, b)  # 0.29·100 is not below 29
  rows = jax.random.permutation(key, b)[:count]
  return images.at[rows].set(change(images[rows], rows))
