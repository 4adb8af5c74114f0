"""Half precision: what is large is computed in it, what is kept is not.

Weights, running statistics, gradients and logits stay in single precision;
activations and the weights' copies that meet them are of the smaller type.
bfloat16 has the exponents of float32, so that losses need no scaling.
"""

import dataclasses
import functools

import jax

from bdjax import checks, types

DTYPES = ('float32', 'bfloat16')


def in_dtype(classifier: types.Classifier, dtype: str) -> types.Classifier:
  """A classifier that computes in another type.

  Args:
    classifier: made by `models.from_functions` or what stands on it.
    dtype: 'float32', or 'bfloat16', which halves the memory of activations
      and leaves each of them two to three significant digits.

  Returns:
    The classifier; states, images and logits are those of the original, and
    so are the names of its taps, whose activations are of the new type.

  Raises:
    ValueError: for any other type.
  """
  checks.one_of(DTYPES, dtype=dtype)
  if dtype == 'float32':
    return classifier
  return classifier._replace(
    apply=functools.partial(classifier.apply, dtype=dtype),
    features=functools.partial(classifier.features, dtype=dtype),
  )


def lowered(
  state: types.ModelState, images: jax.Array, dtype: str | None
) -> tuple[types.ModelState, jax.Array]:
  """A network's inputs in the type it computes in.

  Args:
    state: its weights and running statistics.
    images: normalized images [b, h, w, c].
    dtype: the type; None leaves everything as it is.

  Returns:
    (state, images); layers with running statistics keep their weights, whose
    errors all examples of a batch would share.
  """
  if dtype is None:
    return state, images
  params = _cast(state.params, state.batch_stats, dtype)
  return dataclasses.replace(state, params=params), images.astype(dtype)


def _cast(params, stats, dtype: str):
  if not isinstance(params, dict):
    return params.astype(dtype)
  if any(not isinstance(x, dict) for x in stats.values()):
    return params
  return {
    name: _cast(node, stats.get(name, {}), dtype)
    for name, node in params.items()
  }
