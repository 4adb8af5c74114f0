"""Named places of a network, where activations are read and edited.

A network calls its `Taps` at every place that has a name; what is recorded and
what is edited is decided by the caller, not by the network. Recording is
free under `jax.jit`: activations nobody returns are compiled away.
"""

from collections.abc import Callable, Collection

import jax

from bdjax import types


class Taps:
  """Records and edits the activations of one forward pass.

  Attributes:
    seen: {name: activation}, after the edit, by forward depth.
  """

  def __init__(
    self,
    edits: types.Edits | None = None,
    wanted: Collection[str] | None = None,
  ):
    """Makes a recorder.

    Args:
      edits: what to put in, by name.
      wanted: names to record; None records all.
    """
    self.seen: dict[str, jax.Array] = {}
    self._edits = edits or {}
    self._wanted = wanted

  def __call__(self, name: str, x: jax.Array) -> jax.Array:
    """The activation to go on with at the place `name`.

    Raises:
      ValueError: if an edit changes the activation's shape.
    """
    if name in self._edits:
      x = _edited(self._edits[name], name, x)
    if self._wanted is None or name in self._wanted:
      self.seen[name] = x
    return x

  def through(
    self, name: str, layer: Callable[..., jax.Array], x: jax.Array, *args
  ) -> jax.Array:
    """Calls a layer between the places `name`.in and `name`."""
    return self(name, layer(self(f'{name}.in', x), *args))

  def within(self, prefix: str) -> '_Within':
    """The same recorder for a part; its names begin with `prefix` and a dot."""
    return _Within(self, prefix)


class _Within(Taps):
  """A recorder that puts a prefix before every name."""

  def __init__(self, taps: Taps, prefix: str):
    super().__init__()
    self.seen = taps.seen
    self._taps = taps
    self._prefix = prefix

  def __call__(self, name: str, x: jax.Array) -> jax.Array:
    return self._taps(f'{self._prefix}.{name}', x)


def _edited(edit, name: str, x: jax.Array) -> jax.Array:
  out = edit(x)
  if out.shape != x.shape:
    raise ValueError(
      f"The edit at tap '{name}' turned {x.shape} into {out.shape}; an edit "
      "keeps the activation's shape."
    )
  return out
