"""BatchNorm with torch's statistics in the form that is cheap under XLA.

Both moments come from one pass over x, each as a sum over space and then a sum
over the batch; the variance is E[x²] − E[x]² in float32, so it carries an error
of about 1e-7·(mean² + var) and is clamped at 0. The result is applied as
x·a + (b − mean·a) with a = scale / √(var + eps).

As in torch, the batch is normalized by its biased variance while the running
variance remembers the unbiased one, n / (n − 1) times as large.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and biased variance per channel.

  Args:
    x: activations [b, ..., c].

  Returns:
    Both [c], in float32 or in x's precision where that is higher.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  count = x.size // x.shape[-1]
  space = tuple(range(1, x.ndim - 1))
  mean = jnp.sum(jnp.sum(x, space), 0) / count
  square = jnp.sum(jnp.sum(x * x, space), 0) / count
  return mean, jnp.maximum(square - mean * mean, 0)


def unbiased(var: jax.Array, count: int) -> jax.Array:
  """The unbiased variance of `count` values; unchanged for a single one."""
  return var * (count / max(count - 1, 1))


def apply_affine(x, mean, var, scale, bias, eps: float) -> jax.Array:
  """Normalizes [b, ..., c] by [c] as x·a + (bias − mean·a), in x's dtype."""
  a = scale * lax.rsqrt(var + eps)
  shape = (1,) * (x.ndim - 1) + (-1,)
  out = x * a.reshape(shape) + (bias - mean * a).reshape(shape)
  return out.astype(x.dtype)


class BatchNorm(nn.Module):
  """Batch normalization over all axes but the last.

  Parameters `scale` and `bias`; running `mean` and `var` in `batch_stats`, all
  [c]. Training uses the batch's statistics and moves the running ones;
  inference uses the running ones and leaves them.

  Attributes:
    decay: weight of the old running statistics; one minus torch's momentum.
    eps: added to the variance.
  """

  decay: float = 0.9
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalizes x [b, ..., c] by its own or by the running statistics."""
    shape = (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    var = self.variable('batch_stats', 'var', jnp.ones, shape)
    if not train:
      return apply_affine(x, mean.value, var.value, scale, bias, self.eps)
    batch_mean, batch_var = moments(x)
    if not self.is_initializing():
      count = x.size // x.shape[-1]
      mean.value = self._move(mean.value, batch_mean)
      var.value = self._move(var.value, unbiased(batch_var, count))
    return apply_affine(x, batch_mean, batch_var, scale, bias, self.eps)

  def _move(self, old: jax.Array, new: jax.Array) -> jax.Array:
    return (self.decay * old + (1 - self.decay) * new).astype(old.dtype)
