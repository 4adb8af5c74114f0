"""What BatchNorm layers see: their inputs in a forward pass."""

import jax

from bdjax import checks, types


def norm_inputs(
  classifier: types.Classifier,
  state: types.ModelState,
  images: jax.Array,
) -> dict[str, jax.Array]:
  """Inputs of all BatchNorm layers, before they are normalized.

  BN: frozen-BN.

  Args:
    classifier: the network.
    state: its weights.
    images: float in [0, 1], [b, h, w, c].

  Returns:
    {name of the layer, as in masks: [b, ..., channels]}; under jit what is not
    used is free.

  Raises:
    Unsupported: if the network has no BatchNorm, or does not name its taps.
  """
  check_norm_taps(classifier)
  taps = classifier.features(state, images)
  return {
    '.'.join(group.norm): taps[f'{group.tap}.in']
    for group in classifier.info.prune_graph
  }


def check_norm_taps(classifier: types.Classifier) -> None:
  """Raises where `norm_inputs` would.

  Raises:
    Unsupported: if the network has no BatchNorm, or does not name its taps.
  """
  graph = classifier.info.prune_graph
  if not graph or any(group.tap is None for group in graph):
    raise checks.Unsupported(
      f"'{classifier.info.arch}' does not say where its BatchNorm layers are "
      'tapped, or has none; give each `types.PruneGroup` its `tap`, or take '
      'another architecture or another defense.'
    )
