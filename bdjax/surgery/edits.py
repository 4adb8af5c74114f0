"""Edits that stay: what a defense leaves in the forward pass of a network."""

from collections.abc import Mapping

import jax

from bdjax import checks, types


def insert(
  classifier: types.Classifier, edits: types.Edits
) -> types.Classifier:
  """A classifier that carries edits of its own.

  Further edits of a call still work; one at the same tap comes after the
  inserted one, and a tap that is read gives what goes on through the network.

  Args:
    classifier: the network; its weights stay a separate argument.
    edits: {tap: function}, see `types.Classifier`.

  Returns:
    A classifier of the same signature and the same `info`.

  Raises:
    ValueError: for a tap that the network does not have.
  """
  for tap in edits:
    checks.one_of(classifier.info.taps, tap=tap)

  def apply(state, images, *, edits: types.Edits | None = None, **kwargs):
    return classifier.apply(state, images, edits=_after(own, edits), **kwargs)

  def features(state, images, *, edits: types.Edits | None = None, **kwargs):
    return classifier.features(
      state, images, edits=_after(own, edits), **kwargs
    )

  own = dict(edits)
  return classifier._replace(apply=apply, features=features)


def _after(own: types.Edits, later: types.Edits | None) -> Mapping:
  """Both sets of edits, the later ones after those of the same tap."""
  later = later or {}
  both = {tap: _chain(own[tap], later[tap]) for tap in own if tap in later}
  return {**own, **later, **both}


def _chain(first, second):
  def edit(x: jax.Array) -> jax.Array:
    return second(first(x))

  return edit
