"""Keys for the members of a stack: one for all, unless asked otherwise."""

import jax
import jax.numpy as jnp

from bdjax import checks, keys, tree


def member_keys(key: jax.Array, m: int, *, shared: bool = True) -> jax.Array:
  """One key per member of a stack.

  Shared keys give every checkpoint the same initial perturbation, batches and
  proposals, so that results depend neither on m nor on the order, the chunks
  or the devices. Own keys make members differ, as seeds do; member i's key
  is the same whatever m is.

  Args:
    key: one typed key.
    m: number of members.
    shared: whether all members get `key` itself.

  Returns:
    Typed keys [m].

  Raises:
    TypeError: for a legacy key.
    ValueError: if m is not positive.

  Example:
    >>> import jax
    >>> from bdjax import sweep
    >>> sweep.member_keys(jax.random.key(0), 3).shape
    (3,)
  """
  checks.typed_key(key=key)
  checks.positive(m=m)
  if shared:
    return tree.broadcast(key, m)
  return keys.per_example(key, jnp.arange(m))
