"""How many models fit: bytes per member of a stack, and chunks from them."""

from typing import Any

import jax

from bdjax import tree

# Where a device does not report its memory.
FALLBACK_BUDGET = 4 * 2**30
# Live bytes per parameter byte where the compiler reports nothing: weights,
# gradient, momentum and result, and as much again for activations.
FALLBACK_FACTOR = 8


def device_budget(device: Any = None) -> int:
  """Bytes that the live models of one chunk may take by default.

  Args:
    device: a JAX device; None = the first one.

  Returns:
    Half of what the device reports, or 4 GiB where it reports nothing. The
    other half is left for data, the whole stack and the results.
  """
  device = jax.devices()[0] if device is None else device
  limit = (device.memory_stats() or {}).get('bytes_limit')
  return limit // 2 if limit else FALLBACK_BUDGET


def _statistics(compiled: Any) -> Any:
  """What the compiler says of a program's memory, None where nothing."""
  try:
    return compiled.memory_analysis()
  except (NotImplementedError, jax.errors.JaxRuntimeError):
    return None


def temporary_bytes(compiled: Any) -> int | None:
  """Bytes a program takes beside arguments and results.

  Args:
    compiled: a compiled program.

  Returns:
    Its peak by the compiler's count, None where that is not reported.
  """
  statistics = _statistics(compiled)
  return None if statistics is None else statistics.temp_size_in_bytes


def member_bytes(stack: Any, compiled: Any = None) -> int:
  """Live bytes of one member while a function runs on it.

  Data are left out: they are broadcast, so a further member does not add any.

  Args:
    stack: pytree with leading axis m; abstract leaves will do.
    compiled: the function compiled for one member, if there is one.

  Returns:
    The member itself plus the program's temporaries and results; a multiple
    of the member where the program's size is not known.
  """
  own = tree.num_bytes(stack) // tree.stack_size(stack)
  found = None if compiled is None else _statistics(compiled)
  if found is None:
    return max(1, own * FALLBACK_FACTOR)
  return max(1, own + found.temp_size_in_bytes + found.output_size_in_bytes)


def fitting_chunk(m: int, bytes_each: int, budget: int) -> int:
  """The chunk of at most `budget` bytes that pads m members least.

  Args:
    m: number of members.
    bytes_each: live bytes of one member.
    budget: bytes all members of a chunk may take.

  Returns:
    An int in [1, m]; 1 even where a single member is over the budget, since
    there is nothing smaller.

  Example:
    >>> fitting_chunk(9, bytes_each=10, budget=80)  # 8 fit; 5 + 4 pads less
    5
  """
  most = max(1, min(m, budget // bytes_each))
  num_chunks = -(-m // most)
  return -(-m // num_chunks)
