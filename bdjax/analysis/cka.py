"""Linear CKA: how alike two models arrange the same images.

With features X [n, d] and Y [n, d'] of the same n images in the same order,
and X̃, Ỹ the features minus their column means,

  CKA(X, Y) = ⟨X̃X̃ᵀ, ỸỸᵀ⟩ / (‖X̃X̃ᵀ‖ ‖ỸỸᵀ‖)
            = ‖X̃ᵀỸ‖² / (‖X̃ᵀX̃‖ ‖ỸᵀỸ‖)         (Frobenius norms throughout).

The first form works on n × n matrices and is right for wide convolution
maps, the second on d × d matrices and is right for many images; `linear`
takes the smaller one by shape. CKA ignores rotations, permutations, offsets
and scale of the features. All of it is float32 at the highest matmul
precision.

Finite samples: CKA of *independent* isotropic features is not 0 but about
√(d d' / ((n + d)(n + d'))), see `independent_floor`; at n = 500 and d = 6144
that is 0.92. `debiased=True` uses the unbiased estimator of HSIC (Song et
al., JMLR 2012), for which independent features give about 0. It may exceed 1
or fall below 0 slightly.

References: Kornblith et al., Similarity of Neural Network Representations
Revisited, ICML 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST
_EPS = 1e-12
_ROUNDING = 1e-6  # spread of a column over the largest feature: 8 float32 ulps


class Cka(NamedTuple):
  """A similarity and whether it could be measured at all.

  Attributes:
    value: float32 [], in [0, 1] unless debiased; 0 where `dead`.
    dead: bool [], one side does not vary over the images, as after pruning.
  """

  value: jax.Array
  dead: jax.Array


def center(x) -> jax.Array:
  """Features [n, ...] as [n, d] minus their column means.

  Columns that vary by no more than 1e-6 of the largest feature become exactly
  0. A pruned layer puts out constants, but their last bits depend on an
  image's place in its batch, and CKA ignores scale: without this, it would
  compare noise.

  Args:
    x: features of n images, any trailing shape.

  Returns:
    float32 [n, d].
  """
  x = jnp.asarray(x, jnp.float32).reshape(jnp.shape(x)[0], -1)
  # Minus the first row first: a constant column is then 0 without rounding.
  shifted = x - x[:1]
  shifted = shifted - jnp.mean(shifted, axis=0, keepdims=True)
  spread = jnp.max(jnp.abs(shifted), axis=0, keepdims=True)
  return jnp.where(spread > _ROUNDING * jnp.max(jnp.abs(x)), shifted, 0.0)


def gram(x) -> jax.Array:
  """Centered linear Gram matrix of features.

  Args:
    x: features [n, ...]; trailing axes are flattened.

  Returns:
    X̃X̃ᵀ, float32 [n, n].
  """
  x = center(x)
  return jnp.matmul(x, x.T, precision=_HIGHEST)


def hsic(k: jax.Array, l: jax.Array, *, debiased: bool = False) -> jax.Array:
  """Dependence of two feature sets from their centered Grams.

  Args:
    k: centered Gram [n, n].
    l: centered Gram [n, n].
    debiased: the unbiased estimator HSIC₁; otherwise the plain inner product,
      that is HSIC without its factor 1/(n − 1)².

  Returns:
    float32 [].

  Raises:
    ValueError: if the Grams differ in shape, or n < 4 when debiased.
  """
  if k.shape != l.shape:
    raise ValueError(
      f'Grams of shapes {k.shape} and {l.shape} cannot be compared; use the '
      'same images for both models.'
    )
  return _hsic1(k, l) if debiased else jnp.sum(k * l)


def _hsic1(k: jax.Array, l: jax.Array) -> jax.Array:
  """HSIC₁ of Song et al. (2012), eq. 5; does not see offsets of features."""
  n = k.shape[0]
  if n < 4:
    raise ValueError(f'debiased HSIC needs at least 4 images, got n={n}.')
  off_diagonal = 1.0 - jnp.eye(n, dtype=k.dtype)
  k, l = k * off_diagonal, l * off_diagonal
  trace = jnp.sum(k * l)
  sums = jnp.sum(k) * jnp.sum(l) / ((n - 1) * (n - 2))
  cross = 2 / (n - 2) * jnp.sum(jnp.sum(k, axis=0) * jnp.sum(l, axis=0))
  return (trace + sums - cross) / (n * (n - 3))


def from_grams(k: jax.Array, l: jax.Array, *, debiased: bool = False) -> Cka:
  """CKA of two models from their centered Grams.

  Args:
    k: centered Gram [n, n] of one model, as `gram` makes it.
    l: centered Gram [n, n] of the other, for the same images.
    debiased: whether HSIC is estimated without bias.

  Returns:
    Value and dead flag.
  """
  k, l = _scaled(k), _scaled(l)
  return _ratio(
    hsic(k, l, debiased=debiased),
    hsic(k, k, debiased=debiased),
    hsic(l, l, debiased=debiased),
  )


def linear(x, y, *, debiased: bool = False) -> Cka:
  """Linear CKA of two feature sets, in the cheaper of its two forms.

  Args:
    x: features [n, ...] of one model; trailing axes are flattened.
    y: features [n, ...] of the other, same images, same order.
    debiased: whether HSIC is estimated without bias (Gram form only).

  Returns:
    Value and dead flag.

  Raises:
    ValueError: if the numbers of images differ or are too small.
  """
  n = jnp.shape(x)[0]
  if n != jnp.shape(y)[0] or n < 2:
    raise ValueError(
      f'features of {n} and {jnp.shape(y)[0]} images cannot be compared; pass '
      'the same images, at least 2, in the same order.'
    )
  widest = max(jnp.size(x), jnp.size(y)) // n
  if n > widest and not debiased:
    return from_features(x, y)
  return from_grams(gram(x), gram(y), debiased=debiased)


def from_features(x, y) -> Cka:
  """Linear CKA in feature space, for n > d; equals the Gram form.

  Args:
    x: features [n, ...].
    y: features [n, ...].

  Returns:
    Value and dead flag.
  """
  x, y = _scaled(center(x)), _scaled(center(y))
  dot = lambda a, b: jnp.sum(jnp.matmul(a.T, b, precision=_HIGHEST) ** 2)
  return _ratio(dot(x, y), dot(x, x), dot(y, y))


def independent_floor(n: int, d: int, d_other: int | None = None) -> float:
  """What biased CKA gives for independent isotropic features.

  Args:
    n: number of images.
    d: feature dimension of one model.
    d_other: that of the other; None = the same.

  Returns:
    √(d d' / ((n + d)(n + d'))).
  """
  d_other = d if d_other is None else d_other
  return (d * d_other / ((n + d) * (n + d_other))) ** 0.5


def _scaled(x: jax.Array) -> jax.Array:
  """Largest entry 1, so that float32 neither over- nor underflows."""
  top = jnp.max(jnp.abs(x))
  return x / jnp.where(top > 0, top, 1.0)


def _ratio(xy: jax.Array, xx: jax.Array, yy: jax.Array) -> Cka:
  """⟨x, y⟩ / (‖x‖ ‖y‖), 0 and flagged where a norm vanishes."""
  dead = (xx <= _EPS) | (yy <= _EPS)
  norms = jnp.sqrt(jnp.maximum(xx, 0.0)) * jnp.sqrt(jnp.maximum(yy, 0.0))
  return Cka(jnp.where(dead, 0.0, xy / (norms + _EPS)), dead)
