"""Losses on logits, averaged over the batch."""

import jax
import jax.numpy as jnp
import optax

from bdjax import types


def cross_entropy(logits: types.Logits, labels: types.Labels) -> jax.Array:
  """Mean cross-entropy.

  Args:
    logits: [b, n].
    labels: int [b].

  Returns:
    A scalar.
  """
  return jnp.mean(
    optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
  )


def smoothed_kl(
  logits: types.Logits, labels: types.Labels, smoothing: float | jax.Array
) -> jax.Array:
  """KL(q ‖ softmax(logits)), q = 1 − s on the label, s/(n − 1) elsewhere.

  It has the gradient of cross-entropy with the same soft labels, and differs
  from it by the entropy of q; s = 0 gives the mean cross-entropy.

  Args:
    logits: [b, n].
    labels: int [b].
    smoothing: s in [0, 1].

  Returns:
    A scalar, the mean over the batch.
  """
  n = logits.shape[-1]
  one_hot = jax.nn.one_hot(labels, n, dtype=logits.dtype)
  target = one_hot * (1 - smoothing) + (1 - one_hot) * (smoothing / (n - 1))
  log_p = jax.nn.log_softmax(logits)
  # xlogy: 0·log 0 = 0, so that s = 0 is plain cross-entropy.
  entropy_term = jax.scipy.special.xlogy(target, target)
  return jnp.mean(jnp.sum(entropy_term - target * log_p, axis=-1))


def accuracy(logits: types.Logits, labels: types.Labels) -> jax.Array:
  """Share of the batch whose largest logit is the label."""
  return jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))
