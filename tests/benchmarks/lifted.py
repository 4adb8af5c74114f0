"""One function over a stack: a side per mode, and its memory by budget."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax

from bdjax import sweep, types

Mode = Literal['map', 'loop', 'vmap', 'shard']
MODES: tuple[Mode, ...] = ('map', 'loop', 'vmap', 'shard')


def in_modes(
  fn: Callable[..., Any], modes: Sequence[Mode] = MODES
) -> dict[str, sweep.Lifted]:
  """'ours_<mode>' -> fn lifted; each compiles at its first call only."""
  return {
    f'ours_{mode}': sweep.lift(fn, types.Exec(mode=mode)) for mode in modes
  }


def sides(
  fn: Callable[..., Any],
  stack: Any,
  *data: Any,
  modes: Sequence[Mode] = MODES,
) -> dict[str, Callable[[], Any]]:
  """'ours_<mode>' -> a call of no arguments, as `timing.compare` takes it."""
  return {
    name: functools.partial(run, stack, *data)
    for name, run in in_modes(fn, modes).items()
  }


def chunk_by_budget(
  fn: Callable[..., Any], stack: Any, *data: Any, budgets: Sequence[int]
) -> dict[str, dict[str, int]]:
  """What a memory budget makes of a stack.

  Args:
    fn: (member, *data) -> pytree, as for `sweep.lift`.
    stack: concrete pytree with leading axis m.
    *data: concrete pytrees, the same for all members.
    budgets: bytes that the live models of one chunk may take.

  Returns:
    budget -> chunk, the models at a time, and bytes, the temporaries of the
    whole compiled program, which the budget is to bound. Results of all
    members, the stack and the data come on top and are no temporaries.
  """
  found, known = {}, {}
  for budget in budgets:
    bounded = sweep.lift(fn, types.Exec(memory_budget=budget))
    chunk = bounded.chunk_for(stack, *data)
    if chunk not in known:
      known[chunk] = temporary_bytes(fn, chunk, stack, *data)
    found[str(budget)] = {'chunk': chunk, 'bytes': known[chunk]}
  return found


def temporary_bytes(fn, chunk, stack, *data) -> int:
  """Temporaries of the program that takes `chunk` members at a time."""
  # Inside a trace the chunk cannot be measured; here it is given.
  run = sweep.lift(fn, types.Exec(chunk=chunk))
  program = jax.jit(lambda stack, *data: run(stack, *data))
  stats = program.lower(stack, *data).compile().memory_analysis()
  return getattr(stats, 'temp_size_in_bytes', -1)  # -1: not reported
