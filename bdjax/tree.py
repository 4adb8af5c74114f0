"""Pytree arithmetic, paths and stacks of models.

A stack is a run-time object: the same pytree with a leading axis m on every
leaf. Names of its members stay outside, as a tuple of strings.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

_T = TypeVar('_T')


def add(a: _T, b: _T) -> _T:
  """The sum a + b, leaf by leaf."""
  return jax.tree.map(jnp.add, a, b)


def subtract(a: _T, b: _T) -> _T:
  """The difference a − b, leaf by leaf."""
  return jax.tree.map(jnp.subtract, a, b)


def scale(factor: float | jax.Array, a: _T) -> _T:
  """The product of a scalar and a tree."""
  return jax.tree.map(lambda x: factor * x, a)


def interpolate(a: _T, b: _T, t: float | jax.Array) -> _T:
  """(1 − t)·a + t·b; exactly a at t = 0 and exactly b at t = 1."""
  return jax.tree.map(lambda x, y: (1 - t) * x + t * y, a, b)


def dot(a, b) -> jax.Array:
  """Inner product over all leaves."""
  parts = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
  return sum(jax.tree.leaves(parts), jnp.zeros(()))


def norm(a) -> jax.Array:
  """Euclidean norm over all leaves, one number."""
  return jnp.sqrt(dot(a, a))


def cosine(a, b, eps: float = 1e-12) -> jax.Array:
  """Cosine of the angle between two trees; 0 where one of them is 0."""
  return dot(a, b) / (norm(a) * norm(b) + eps)


def count(a) -> int:
  """Number of scalars in all leaves."""
  return sum(int(np.prod(np.shape(x))) for x in jax.tree.leaves(a))


def num_bytes(a) -> int:
  """Bytes of all leaves; abstract leaves count as what they stand for."""
  return sum(
    int(np.prod(x.shape)) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(a)
    if hasattr(x, 'dtype') and not _is_key(x)
  )


def _is_key(x) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def path_string(path) -> str:
  """A leaf's path as 'params/head/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def select(a: Any, predicate: Callable[[str], bool]) -> Any:
  """Mask tree of bools: whether each leaf's path satisfies the predicate."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: predicate(path_string(path)), a
  )


def all_finite(a) -> jax.Array:
  """Whether every inexact leaf is finite, one bool."""
  parts = [
    jnp.all(jnp.isfinite(x))
    for x in jax.tree.leaves(a)
    if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
  ]
  return jnp.all(jnp.asarray(parts)) if parts else jnp.asarray(True)


def describe_mismatch(a, b, name_a: str = 'A', name_b: str = 'B') -> str | None:
  """The first leaf in which two trees differ in path, shape or dtype.

  Returns:
    '`params/head/kernel` is (512, 10) in A but (512, 43) in B', or None where
    the trees are alike.
  """
  leaves_a = dict(
    (path_string(p), x) for p, x in jax.tree_util.tree_leaves_with_path(a)
  )
  leaves_b = dict(
    (path_string(p), x) for p, x in jax.tree_util.tree_leaves_with_path(b)
  )
  for path in [*leaves_a, *leaves_b]:  # in order, unlike a set's union
    if path not in leaves_b:
      return f'`{path}` is in {name_a} only'
    if path not in leaves_a:
      return f'`{path}` is in {name_b} only'
  for path, x in leaves_a.items():
    y = leaves_b[path]
    if np.shape(x) != np.shape(y):
      return (
        f'`{path}` is {np.shape(x)} in {name_a} but {np.shape(y)} in {name_b}'
      )
    if jnp.result_type(x) != jnp.result_type(y):
      return (
        f'`{path}` is {jnp.result_type(x)} in {name_a} but '
        f'{jnp.result_type(y)} in {name_b}'
      )
  if jax.tree.structure(a) != jax.tree.structure(b):
    return f'containers or static fields differ in {name_a} and {name_b}'
  return None


def stack(trees: Sequence[_T], names: Sequence[str] | None = None) -> _T:
  """Stacks like trees along a new leading axis m.

  Args:
    trees: at least one tree; all alike in structure, shapes and dtypes.
    names: one name per tree for the error message.

  Returns:
    The stacked tree.

  Raises:
    ValueError: naming the first leaf that differs, with both shapes.
  """
  if not trees:
    raise ValueError('Cannot stack 0 trees; give at least one.')
  names = list(names) if names else [f'#{i}' for i in range(len(trees))]
  for tree, name in zip(trees[1:], names[1:], strict=True):
    mismatch = describe_mismatch(trees[0], tree, names[0], name)
    if mismatch:
      raise ValueError(
        f'Cannot stack {len(trees)} checkpoints: {mismatch}; stack only '
        'models of one architecture, width and number of classes.'
      )
  if all(map(_is_at_hand, jax.tree.leaves(list(trees)))):
    # On the host nothing is compiled; a program of its own for each number of
    # trees takes a second.
    return jax.tree.map(lambda *xs: jax.device_put(np.stack(xs)), *trees)
  return _stack(*trees)


def _is_at_hand(x) -> bool:
  """Whether NumPy can read a leaf where it lies."""
  if isinstance(x, np.ndarray):
    return True
  return (
    isinstance(x, jax.Array)
    and not isinstance(x, jax.core.Tracer)
    and not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    and len(x.devices()) == 1
    and jax.default_backend() == 'cpu'
  )


@jax.jit  # one program per kind of tree rather than one per shape of leaf
def _stack(*trees):
  return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def stack_size(stacked) -> int:
  """Length m of the leading axis.

  Raises:
    ValueError: if leaves disagree, a leaf has no axis or there is none.
  """
  sizes = {np.shape(x)[:1] for x in jax.tree.leaves(stacked)}
  if not sizes:
    raise ValueError('A stack without leaves has no size.')
  if len(sizes) != 1 or () in sizes:
    raise ValueError(
      f'Leading axes {sorted(sizes)} disagree; every leaf of a stack has the '
      'same leading axis. Make stacks with tree.stack.'
    )
  return sizes.pop()[0]


def take(stacked: _T, i: int | jax.Array) -> _T:
  """Member i of a stack, or the stack of the members i [k].

  Trees of NumPy arrays stay on the host.
  """
  if all(isinstance(x, np.ndarray) for x in jax.tree.leaves(stacked)):
    return jax.tree.map(lambda x: x[i], stacked)
  return _take(stacked, i)


@jax.jit
def _take(stacked, i):
  return jax.tree.map(lambda x: x[i], stacked)


def unstack(stacked: _T) -> list[_T]:
  """The members of a stack, in order."""
  return [take(stacked, i) for i in range(stack_size(stacked))]


def broadcast(a: _T, m: int) -> _T:
  """A stack of m equal members."""
  return jax.tree.map(
    lambda x: jnp.broadcast_to(jnp.asarray(x), (m, *np.shape(x))), a
  )
