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


def jensen_shannon(logits_a: types.Logits, logits_b: types.Logits) -> jax.Array:
  """Jensen–Shannon divergence of two predictions, example by example.

    ½ Σ p log p + ½ Σ q log q − Σ m log m,    m = (p + q)/2

  with probabilities floored at 1e-8: symmetric, 0 where the two agree, log 2
  where they share no class.

  Args:
    logits_a: [b, n], of p.
    logits_b: [b, n], of q.

  Returns:
    [b], in [0, log 2].
  """
  p, q = (
    jnp.maximum(jax.nn.softmax(logits), 1e-8) for logits in (logits_a, logits_b)
  )
  m = (p + q) / 2
  # Differences of logs before sums: p = q is 0 exactly, with gradient 0.
  terms = p * (jnp.log(p) - jnp.log(m)) + q * (jnp.log(q) - jnp.log(m))
  return 0.5 * jnp.sum(terms, axis=-1)


def unlikelihood(logits: types.Logits, labels: types.Labels) -> jax.Array:
  """Bounded −log(1 − p) of a class to get away from, example by example.

    ½[−log(1e-6 + min(Σ_{k≠y} p_k, 0.999)) − log(1 + 1e-6 − max(p_y, 0.001))]

  the mean of two forms that are equal but for rounding. The bounds end the
  pull, and the gradient, once the class has less than 0.001 of probability.

  Args:
    logits: [b, n].
    labels: int [b], the classes to get away from.

  Returns:
    [b], from 0.001 to 13.8.
  """
  p = jax.nn.softmax(logits)
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  own = jnp.sum(jnp.where(is_label, p, 0), axis=-1)
  others = jnp.sum(jnp.where(is_label, 0, p), axis=-1)
  return -0.5 * (
    jnp.log(1e-6 + jnp.minimum(others, 0.999))
    + jnp.log(1 + 1e-6 - jnp.maximum(own, 0.001))
  )


def runner_up(logits: types.Logits, labels: types.Labels) -> types.Labels:
  """The class of the largest logit that is not the label, int32 [b]."""
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  others = jnp.where(is_label, -jnp.inf, logits)
  return jnp.argmax(others, axis=-1).astype(jnp.int32)


def repulsion(logits: types.Logits, labels: types.Labels) -> jax.Array:
  """−log(1.0001 − p) of a class to get away from, example by example.

  Unlike `unlikelihood` it pulls until nothing is left of the class; the small
  constant keeps certainty finite, at 9.2.

  Args:
    logits: [b, n].
    labels: int [b], the classes to get away from.

  Returns:
    [b].
  """
  p = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=-1)
  return -jnp.log(1.0001 - p[:, 0] + 1e-12)


def attention_map(features: jax.Array) -> jax.Array:
  """Where a network looks: energy over channels, of norm one per example.

    A = Σ_c F_c²,    A / (‖A‖₂ + 1e-6)

  Args:
    features: [b, h, w, c], or [b, c] for a map of a single place.

  Returns:
    [b, h, w], or [b]; norms are below 1, 0 where all features are 0.
  """
  energy = jnp.sum(features**2, axis=-1)
  axes = tuple(range(1, energy.ndim))
  # The root of a sum has no gradient at 0; there the norm is the constant 0.
  square = jnp.sum(energy**2, axis=axes, keepdims=True)
  is_zero = square == 0
  length = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))
  return energy / (length + 1e-6)


def attention_distance(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference of two attention maps.

  Args:
    student: features [b, h, w, c] or [b, c].
    teacher: features of the same images, of any number of channels.

  Returns:
    A scalar, the mean over images and places.

  Raises:
    ValueError: if the maps are of different sizes.
  """
  if student.shape[:-1] != teacher.shape[:-1]:
    raise ValueError(
      f'Attention maps of {student.shape} and {teacher.shape} have no common '
      'places; compare features of the same images at the same tap.'
    )
  return jnp.mean((attention_map(student) - attention_map(teacher)) ** 2)
