"""A network in two halves: up to its last feature map, and from there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, types

MAP = 'penultimate_map'


class Seen(NamedTuple):
  """One forward pass.

  Attributes:
    map: the last feature map, [b, h, w, c].
    logits: [b, n].
    model: with new running statistics where it trained.
  """

  map: jax.Array
  logits: jax.Array
  model: types.ModelState


def see(
  classifier: types.Classifier,
  model: types.ModelState,
  images: types.Images,
  *,
  train: bool = False,
) -> Seen:
  """Last feature map, logits and statistics of a single pass.

  Args:
    classifier: the network.
    model: its state.
    images: [b, h, w, c]; those of a generator may leave [0, 1].
    train: whether norms use the batch.

  Returns:
    What was seen.
  """
  found = []

  def record(x):
    found.append(x)
    return x

  # Put in at 'input', behind the check of what callers hand over.
  edits = {'input': lambda _: images, MAP: record}
  logits, new = classifier.apply(
    model, jnp.zeros_like(images), train=train, edits=edits
  )
  return Seen(found[0], logits, new)


def see_from(
  classifier: types.Classifier,
  model: types.ModelState,
  maps: jax.Array,
  *,
  train: bool = False,
) -> types.Logits:
  """Logits of the layers behind the last feature map.

  Args:
    classifier: the network.
    model: its state.
    maps: [b, h, w, c], in place of what the layers before it would give; under
      jit these compile away.
    train: whether norms behind the map use the batch.

  Returns:
    [b, n].
  """
  images = jnp.zeros((len(maps), *classifier.info.image_shape), maps.dtype)
  return classifier.apply(
    model, images, train=train, edits={MAP: lambda _: maps}
  )[0]


def map_shape(
  classifier: types.Classifier, model: types.ModelState
) -> tuple[int, ...]:
  """Shape (h, w, c) of the last feature map."""
  image = jnp.zeros((1, *classifier.info.image_shape))
  shape = jax.eval_shape(lambda m: see(classifier, m, image).map, model).shape
  return shape[1:]


def require_map(classifier: types.Classifier) -> None:
  """Raises where a network does not name its last feature map.

  Raises:
    Unsupported: with the call to add.
  """
  if MAP not in classifier.info.taps:
    raise checks.Unsupported(
      f"'{classifier.info.arch}' has no tap '{MAP}'; call tap('{MAP}', x) in "
      'the network on its last feature map [b, h, w, c].'
    )
