"""Weights of a network as an asset: trained on images, kept as one vector."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax import flatten_util

from bdjax import training, types


def flat(params: types.PyTree) -> np.ndarray:
  """All weights in one vector, float32 [n]; an asset is one array."""
  return np.asarray(flatten_util.ravel_pytree(params)[0], np.float32)


def like(name: str, vector: np.ndarray, shapes: types.PyTree) -> types.PyTree:
  """The weights that `flat` put into a vector.

  Args:
    name: of the asset, for the message.
    vector: float [n].
    shapes: abstract weights.

  Returns:
    The weights, float32 NumPy arrays.

  Raises:
    ValueError: if the vector has another length.
  """
  leaves, structure = jax.tree.flatten(shapes)
  sizes = [math.prod(leaf.shape) for leaf in leaves]
  if np.shape(vector) != (sum(sizes),):
    raise ValueError(
      f"The asset '{name}' has shape {np.shape(vector)}; with these "
      f'hyper-parameters the network has {sum(sizes)} weights: give the ones '
      'it was crafted with, or craft it anew.'
    )
  parts = np.split(np.asarray(vector, np.float32), np.cumsum(sizes)[:-1])
  shaped = [
    part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, shaped)


def hold_out(
  key: jax.Array, num: int, share: float = 0.1, most: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
  """Rows to train on, and rows to judge with.

  Args:
    key: typed key of the choice.
    num: rows in all.
    share: of those held out.
    most: no more than this are held out.

  Returns:
    (rows to train on, held out), sorted; neither is empty.

  Raises:
    ValueError: if there are fewer than two rows.
  """
  if num < 2:
    raise ValueError(
      f'{num} training image cannot be split into images to craft on and to '
      'judge with; give at least 2.'
    )
  order = np.asarray(jax.random.permutation(key, num))
  cut = max(1, min(round(share * num), most))
  return np.sort(order[cut:]), np.sort(order[:cut])


def train(
  key: jax.Array,
  weights: types.PyTree,
  rest: Any,
  images: np.ndarray,
  rows: np.ndarray,
  objective: Callable[..., tuple[jax.Array, Any]],
  optimizer: optax.GradientTransformationExtraArgs,
  **length: Any,
) -> tuple[types.PyTree, Any, types.Metrics]:
  """Trains any weights on images without labels; one compiled program.

  Args:
    key: typed key of orders and steps.
    weights: where to start.
    rest: what the steps carry along beside them.
    images: uint8 [N, h, w, c].
    rows: which of them are used.
    objective: (weights, rest, batch, clock) -> (loss, (metrics, rest)).
    optimizer: on the clock.
    **length: remaining fields of the `types.Phase`, such as `num_epochs`.

  Returns:
    (weights, rest, metrics of every step).

  Raises:
    NonFiniteError: if the loss leaves the finite numbers.
  """
  phase = training.fit(
    lambda key, carry: carry.extra,
    objective,
    optimizer,
    finish=lambda weights, rest: types.Carry(
      model=_no_model(), extra=(weights, rest)
    ),
    name='craft',
    reads='train',
    **length,
  )
  carry, metrics = training.run_phases(
    (phase,),
    types.Carry(model=_no_model(), extra=(weights, rest)),
    {'train': training.make_feed(images, np.zeros(len(images), int), rows)},
    key,
  )
  return *carry.extra, metrics['craft']


def _no_model() -> types.ModelState:
  return types.ModelState(params={}, batch_stats={})
