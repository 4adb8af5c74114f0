"""Lifting a function of one checkpoint to a stack of them.

Methods, metrics and instruments know one checkpoint. Here they are mapped
over the leading axis m of a stack, by one of four modes that agree to float
rounding. A mapped member is looked up by its index, so a stack is neither
padded nor copied on one device, and data are never replicated m times.

`vmap` over convolution weights becomes a grouped convolution, which on CPU is
slower than one model after the other; `map` with the chunk that `chunks.json`
names for the device is the default.
"""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, tree, types
from bdjax.sweep import chunks, memory

AXIS = 'models'  # name of the mesh axis of mode 'shard'

MODES = ('vmap', 'map', 'loop', 'shard')
PRECISIONS = ('default', 'high', 'highest', 'bfloat16')
DEFAULT = types.Exec()


def _validate(exec: types.Exec) -> None:
  """Raises for an Exec that cannot be meant."""
  checks.one_of(MODES, mode=exec.mode)
  checks.one_of(PRECISIONS, precision=exec.precision)
  if exec.chunk is not None and (
    not isinstance(exec.chunk, int | np.integer) or exec.chunk < 1
  ):
    raise ValueError(
      f'`chunk={exec.chunk!r}` is not a number of models of at least 1; use '
      'None to have it chosen from `memory_budget`.'
    )
  if exec.memory_budget is not None and not exec.memory_budget > 0:
    raise ValueError(
      f'`memory_budget={exec.memory_budget}` must be positive; it counts '
      f'bytes, use {8 * 2**30} for 8 GiB or None for half of the device.'
    )


def _prepare(fn: Callable[..., Any], exec: types.Exec) -> Callable[..., Any]:
  """The function as it is traced: with its precision, rematerialized."""

  def prepared(*args):
    if exec.precision == 'default':  # whatever the caller has set
      return fn(*args)
    with jax.default_matmul_precision(exec.precision):
      return fn(*args)

  return jax.checkpoint(prepared) if exec.remat else prepared


def _mapped(one: Callable[..., Any], stack: Any, data: Any, chunk: int) -> Any:
  """One program over a stack, `chunk` members at a time."""
  m = tree.stack_size(stack)
  if m == 1:  # no loop: convolutions keep XLA-CPU's fast path
    return jax.tree.map(lambda y: y[None], one(tree.take(stack, 0), *data))
  if chunk >= m:
    return jax.vmap(lambda member: one(member, *data))(stack)
  if chunk == 1:
    return jax.lax.map(lambda i: one(tree.take(stack, i), *data), jnp.arange(m))
  # Whole chunks only, so that the body is compiled once; the last member
  # stands in for those that are missing.
  num_chunks = -(-m // chunk)
  index = jnp.minimum(jnp.arange(num_chunks * chunk), m - 1)
  results = jax.lax.map(
    lambda rows: jax.vmap(lambda i: one(tree.take(stack, i), *data))(rows),
    index.reshape(num_chunks, chunk),
  )
  return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:m], results)


_rows = jax.jit(tree.take)


@jax.jit(static_argnames='m')
def _first(stack: Any, m: int) -> Any:
  """The first m members."""
  return jax.tree.map(lambda x: x[:m], stack)


def _is_traced(values: Any) -> bool:
  return not all(map(checks.is_concrete, jax.tree.leaves(values)))


def _refuse_trace(values: Any) -> None:
  """A Python loop cannot fetch what is only being traced."""
  if _is_traced(values):
    raise ValueError(
      "Exec(mode='loop') fetches each member's result and cannot run inside "
      "jax.jit, vmap or grad; use mode='map' with chunk=1 there, or call the "
      'lifted function from plain Python.'
    )


def _delete(stack: Any) -> None:
  for leaf in jax.tree.leaves(stack):
    if isinstance(leaf, jax.Array) and not leaf.is_deleted():
      leaf.delete()


class Lifted:
  """A function over stacks, compiled once per shape; made by `lift`.

  Attributes:
    exec: how it runs.
  """

  def __init__(self, fn: Callable[..., Any], exec: types.Exec):
    _validate(exec)
    self.exec = exec
    # Inlined, `one` is only a trace that measuring, mapping and looping share.
    prepared = _prepare(fn, exec)
    donate = (0,) if exec.donate else ()
    self._one = jax.jit(prepared, inline=True)
    self._member = jax.jit(prepared, donate_argnums=donate)
    self._program = jax.jit(
      self._run, static_argnums=(2, 3), donate_argnums=donate
    )
    self._chunks = {}

  def __call__(self, stack: Any, *data: Any) -> Any:
    """Results of all members of `stack`, with leading axis m."""
    chunk = self.chunk_for(stack, *data)
    if self.exec.mode == 'loop':
      return self._loop(stack, data)
    if self.exec.mode == 'shard':
      return self._shard(stack, data, chunk)
    return self._program(stack, data, chunk, None)

  def chunk_for(self, stack: Any, *data: Any) -> int:
    """Models at a time, on each device, when called with these arguments.

    Raises:
      ValueError: if the stack has no members or unequal leading axes.
    """
    m = tree.stack_size(stack)
    if m == 0:
      raise ValueError('The stack has no members; give at least one.')
    mode, chunk = self.exec.mode, self.exec.chunk
    if mode in ('vmap', 'loop'):
      return m if mode == 'vmap' else 1
    share = -(-m // jax.device_count()) if mode == 'shard' else m
    if chunk is None:
      chunk = self._affordable(share, stack, data)
    return min(int(chunk), share)

  def _affordable(self, m: int, stack: Any, data: Any) -> int:
    """The chunk that the memory budget allows, measured once per shape."""
    budget, device = self.exec.memory_budget, jax.devices()[0]
    usual = chunks.usual(device) if budget is None else None
    if m == 1 or usual is not None:
      return min(usual or 1, m)
    leaves, structure = jax.tree.flatten((stack, data))
    shapes = (structure, *((np.shape(x), jnp.result_type(x)) for x in leaves))
    if shapes not in self._chunks:
      compiled, is_concrete = None, not _is_traced((stack, data))
      if is_concrete:
        member = jax.eval_shape(lambda s: tree.take(s, 0), stack)
        compiled = self._one.lower(member, *data).compile()
      budget = budget or memory.device_budget(device)
      each = memory.member_bytes(stack, compiled)
      chunk = memory.fitting_chunk(m, each, budget)
      # Members together may need more than as many alone: their convolutions
      # are others. What has been compiled here is what will run.
      while is_concrete and chunk > 1:
        used = self._used(m, chunk, stack, data)
        if used is None or used <= budget:
          break
        chunk = memory.fitting_chunk(m, -(-used // chunk), budget)
      self._chunks[shapes] = chunk
    return self._chunks[shapes]

  def _used(self, m: int, chunk: int, stack: Any, data: Any) -> int | None:
    """Bytes of temporaries of m members' program, None where not reported."""
    if m < tree.stack_size(stack):  # one device's share
      stack = jax.eval_shape(lambda s: _first(s, m), stack)
    compiled = self._program.lower(stack, data, chunk, None).compile()
    return memory.temporary_bytes(compiled)

  def _run(self, stack: Any, data: Any, chunk: int, mesh: Any) -> Any:
    """The whole program; each device of a mesh runs its slice."""
    if mesh is None:
      return _mapped(self._one, stack, data, chunk)
    return jax.shard_map(
      lambda stack, data: _mapped(self._one, stack, data, chunk),
      mesh=mesh,
      in_specs=(jax.P(AXIS), jax.P()),
      out_specs=jax.P(AXIS),
      # Off, since loop carries that start as constants would not pass it.
      check_vma=False,
    )(stack, data)

  def _shard(self, stack: Any, data: Any, chunk: int) -> Any:
    """Places slices of a padded stack on all devices and runs them."""
    m, n = tree.stack_size(stack), jax.device_count()
    padded = -(-m // (n * chunk)) * n * chunk
    mesh = jax.make_mesh(
      (n,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
    )
    if padded > m:
      stack = _rows(stack, jax.device_put(np.arange(padded).clip(max=m - 1)))
    stack = jax.device_put(stack, jax.NamedSharding(mesh, jax.P(AXIS)))
    data = jax.device_put(data, jax.NamedSharding(mesh, jax.P()))
    results = self._program(stack, data, chunk, mesh)
    return results if padded == m else _first(results, m)

  def _loop(self, stack: Any, data: Any) -> Any:
    """Runs member after member, with one member's results on the device."""
    _refuse_trace((stack, data))
    m, results = tree.stack_size(stack), []
    for i in range(m):
      member = _rows(stack, jax.device_put(np.int32(i)))
      if self.exec.donate and i == m - 1:
        _delete(stack)
      result = self._member(member, *data)
      _refuse_trace(result)
      results.append(jax.device_get(result))
    return tree.stack(results)  # puts them back at once


def lift(fn: Callable[..., Any], exec: types.Exec = DEFAULT) -> Lifted:
  """Lifts a function of one checkpoint to stacks.

  The result compiles at its first call and again only for other shapes; a
  driver keeps it.

  Access:     as `fn`
  Space:      as `fn`
  Guarantees:
    - a member's result depends on neither m, nor the other members, nor their
      order, nor `exec`, up to float rounding; integer counts are exact unless
      rounding moves an argmax
    - `fn` is traced once per shape, and never at a further call
    - data are broadcast; on one device a stack is not copied for padding

  Args:
    fn: pure (member, *data) -> pytree of arrays; `member` is one element of
      the stack, without its leading axis.
    exec: how to run; `chunk` concerns 'map' and 'shard' only. With chunk None
      the CPU takes one model at a time unless `memory_budget` is set; other
      devices take what `fn`, compiled for one member, says it needs.

  Returns:
    (stack, *data) -> pytree with leading axis m, in the order of the stack.
    Its `chunk_for(stack, *data)` tells the chunk that will be used.

  Raises:
    ValueError: for an Exec out of range; on a call, if the leading axes of
      the stack disagree, or if mode 'loop' is called inside a trace.

  Example:
    >>> import jax.numpy as jnp
    >>> from bdjax import sweep
    >>> norms = sweep.lift(lambda member, scale: scale * jnp.sum(member**2))
    >>> print(norms(jnp.arange(6.0).reshape(3, 2), 10.0))
    [ 10. 130. 410.]
  """
  return Lifted(fn, exec)


# Entries vanish with their function: the lifted form refers to it weakly.
_CACHE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _lifted(fn: Callable[..., Any], exec: types.Exec) -> Lifted:
  """The function lifted before with the same `exec`, or lifted now."""
  try:
    known = _CACHE.setdefault(fn, {})
    alive = weakref.proxy(fn)
  except TypeError:  # unhashable or not weakly referable
    return lift(fn, exec)
  if exec not in known:
    known[exec] = lift(lambda *args: alive(*args), exec)
  return known[exec]


def over_checkpoints(
  fn: Callable[..., Any],
  stack: Any,
  *data: Any,
  exec: types.Exec = DEFAULT,
) -> Any:
  """Runs a function of one checkpoint over a stack of them.

  As `lift(fn, exec)(stack, *data)`; as long as the caller keeps `fn`, a later
  call with the same `fn` reuses the compiled program.

  Args:
    fn: pure (member, *data) -> pytree of arrays.
    stack: pytree whose leaves have a leading axis m.
    *data: pytrees of arrays, the same for all members. Mode 'shard' copies
      them to every device unless they are there.
    exec: how to run.

  Returns:
    Pytree with leading axis m, in the order of the stack.

  Raises:
    ValueError: as `lift`.

  Example:
    >>> import jax.numpy as jnp
    >>> from bdjax import sweep
    >>> stack = {'w': jnp.arange(6.0).reshape(3, 2)}
    >>> print(sweep.over_checkpoints(lambda member: member['w'].sum(), stack))
    [1. 5. 9.]
  """
  return _lifted(fn, exec)(stack, *data)


def chunk_for(
  fn: Callable[..., Any],
  stack: Any,
  *data: Any,
  exec: types.Exec = DEFAULT,
) -> int:
  """Models at a time that `over_checkpoints` takes for these arguments.

  Args:
    fn: pure (member, *data) -> pytree of arrays.
    stack: pytree whose leaves have a leading axis m.
    *data: pytrees of arrays, the same for all members.
    exec: how to run.

  Returns:
    m for 'vmap', 1 for 'loop', otherwise the chunk on each device.

  Raises:
    ValueError: as `lift`.

  Example:
    >>> import jax.numpy as jnp
    >>> from bdjax import sweep, types
    >>> exec = types.Exec(chunk=8)
    >>> sweep.chunk_for(lambda member: member, jnp.zeros((3, 2)), exec=exec)
    3
  """
  return _lifted(fn, exec).chunk_for(stack, *data)
