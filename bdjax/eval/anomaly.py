"""The anomaly index: how far a value lies from the median of its kind."""

import jax
import jax.numpy as jnp

FEW = 5  # values below which the spread of the others says little
_GUARD = 1e-6
_CONSISTENCY = 1.4826  # makes it the deviation, for normal values


def anomaly_index(values) -> jax.Array:
  """|v − median| / (1.4826 · median |v − median|), value by value.

  Args:
    values: [..., n], such as one number per class.

  Returns:
    float32 [..., n]; a spread below 1e-6 counts as 1e-6.

  Example:
    >>> round(float(anomaly_index([1.0, 9.0, 10.0, 11.0, 12.0])[0]), 2)
    6.07
  """
  values = jnp.asarray(values, jnp.float32)
  distance = jnp.abs(values - jnp.median(values, -1, keepdims=True))
  spread = _CONSISTENCY * jnp.median(distance, -1, keepdims=True)
  return distance / jnp.maximum(spread, _GUARD)


def flag_small(values, threshold: float | jax.Array = 2.0) -> jax.Array:
  """Outliers below the median, such as the classes of too small a patch.

  Args:
    values: [..., n].
    threshold: anomaly index from above which a value is an outlier.

  Returns:
    bool [..., n].
  """
  values = jnp.asarray(values, jnp.float32)
  is_small = values < jnp.median(values, -1, keepdims=True)
  return is_small & (anomaly_index(values) > threshold)


def smallest_index(values) -> jax.Array:
  """The anomaly index of the smallest value: that of a whole model.

  Args:
    values: [..., n].

  Returns:
    float32 [...].
  """
  values = jnp.asarray(values, jnp.float32)
  at = jnp.argmin(values, -1, keepdims=True)
  return jnp.take_along_axis(anomaly_index(values), at, -1)[..., 0]


def is_few(num: int) -> bool:
  """Whether an index among `num` values is a weak yardstick (below five)."""
  return num < FEW
