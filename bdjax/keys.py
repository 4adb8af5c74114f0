"""Random streams: by name, by step, by example; a key is consumed once.

Results must not depend on batching, chunking or the order of models, so
randomness is addressed, not drawn in sequence: `stream` names what it is for,
`at` says when, `per_example` says for whom.
"""

import zlib

import jax
import jax.numpy as jnp

from bdjax import checks


def root(seed: int) -> jax.Array:
  """The typed root key of a run."""
  return jax.random.key(seed)


def stream(key: jax.Array, name: str) -> jax.Array:
  """The key of a named stream such as 'init', 'augment' or 'trigger'."""
  checks.typed_key(key=key)
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def at(key: jax.Array, step: int | jax.Array) -> jax.Array:
  """The key of one step."""
  return jax.random.fold_in(key, step)


def per_example(key: jax.Array, index: jax.Array) -> jax.Array:
  """One key per example.

  Args:
    key: key of the step or of the whole data set.
    index: int [b], the examples' positions in their data set.

  Returns:
    Typed keys [b], each a function of its example's index alone.
  """
  index = jnp.asarray(index)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
