"""Trees of arrays on disk: the only file that knows Orbax.

A checkpoint is one folder. Beside the arrays it carries a manifest with each
leaf's shape, dtype, PRNG implementation and SHA-256, so that a load can tell a
checkpoint that does not fit from one that is damaged, and can bring back what
Orbax alone does not store: typed PRNG keys, empty arrays and empty trees.
"""

import contextlib
import logging
import os
import pathlib
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from bdjax import tree
from bdjax.zoo import digest, files

_T = TypeVar('_T')

_MANIFEST = 'bdjax'  # our entry of Orbax's custom metadata
_ROOT = 'value'  # name of the leaf of a tree that is a bare array
_FILLER = 'empty'  # Orbax refuses a checkpoint without arrays


class _Opened(NamedTuple):
  """A checkpoint's manifest and Orbax's own description of its arrays."""

  manifest: dict[str, dict[str, Any]]
  metadata: Any


def save_tree(path: str | os.PathLike, value: Any) -> str:
  """Writes a tree of arrays as one checkpoint folder.

  Synchronous: on return everything is on the disk. A writer killed on the way
  leaves no folder of this name.

  Args:
    path: folder to make; must not exist.
    value: pytree of JAX or NumPy arrays, typed PRNG keys and Python numbers;
      named tuples, registered dataclasses and empty containers included.

  Returns:
    SHA-256 of the content, 64 hex digits: equal for equal names, shapes,
    dtypes and values, whatever the files look like.

  Raises:
    FileExistsError: if the folder is there already.
    ValueError: if two leaves would get the same name.
    TypeError: if a leaf is no array and no number.
  """
  path = pathlib.Path(path).absolute()
  if path.exists():
    raise FileExistsError(
      f'{path} exists; checkpoints are never overwritten. Write beside it and '
      'rename, or delete it first.'
    )
  leaves = _named_leaves(value)
  arrays = {name: _to_host(name, leaf) for name, leaf in leaves.items()}
  manifest = {n: _describe(leaves[n], arrays[n]) for n in leaves}
  stored = {n: x for n, x in arrays.items() if x.size}
  stored = stored or {_FILLER: np.zeros(1, np.uint8)}
  path.parent.mkdir(parents=True, exist_ok=True)
  with _quiet():
    custom: Any = {_MANIFEST: manifest}
    ocp.save(str(path), _nest(stored), custom_metadata=custom)
  files.sync_tree(path)
  files.sync(path.parent)
  return _content(manifest)


def load_tree(path: str | os.PathLike, abstract: _T) -> _T:
  """Reads a checkpoint into the structure of an abstract tree.

  Args:
    path: folder written by `save_tree`.
    abstract: tree of `jax.ShapeDtypeStruct`, as `jax.eval_shape` gives it, or
      a concrete example. Leaves come back as what they are there: NumPy arrays
      and Python numbers as such, everything else as JAX arrays.

  Returns:
    The tree, every leaf checked against the SHA-256 it was saved with.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if a name, shape or dtype differs, with both of them.
    CorruptArtefactError: if the checkpoint is truncated or was changed.

  Example:
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + '/state'
    >>> _ = save_tree(folder, {'w': jnp.ones(2)})
    >>> load_tree(folder, {'w': jax.ShapeDtypeStruct((2,), jnp.float32)})
    {'w': Array([1., 1.], dtype=float32)}
  """
  path = pathlib.Path(path).absolute()
  opened = _open(path)
  templates = _named_leaves(abstract)
  mismatch = tree.describe_mismatch(
    {name: _abstract(entry) for name, entry in opened.manifest.items()},
    templates,
    'the checkpoint',
    'the tree asked for',
  )
  if mismatch:
    raise ValueError(
      f'Cannot load {path}: {mismatch}; build the abstract tree with the '
      'architecture, options and number of classes named in its card.'
    )
  arrays = _read(path, opened)
  leaves = [
    _restore(path, name, arrays[name], opened.manifest[name], template)
    for name, template in templates.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def verify_tree(path: str | os.PathLike) -> str:
  """Reads all of a checkpoint and checks it.

  Args:
    path: folder written by `save_tree`.

  Returns:
    SHA-256 of the content, as `save_tree` returned it.

  Raises:
    FileNotFoundError: if there is no such folder.
    CorruptArtefactError: if the checkpoint is truncated or was changed.
  """
  path = pathlib.Path(path).absolute()
  opened = _open(path)
  _read(path, opened)
  return _content(opened.manifest)


@contextlib.contextmanager
def _quiet():
  """Keeps Orbax's running commentary off the terminal."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _corrupt(path: pathlib.Path, reason: str) -> files.CorruptArtefactError:
  return files.CorruptArtefactError(
    f'The checkpoint {path} cannot be read: {reason}. It was truncated or '
    'changed after it was written; delete the folder or re-run what made it '
    'with --force.'
  )


def _first_line(error: Exception) -> str:
  lines = str(error).splitlines()
  return f'{type(error).__name__}: {lines[0][:200] if lines else ""}'


def _open(path: pathlib.Path) -> _Opened:
  """Reads the manifest and holds Orbax's description against it."""
  if not path.is_dir():
    raise FileNotFoundError(f'There is no checkpoint at {path}.')
  try:
    with _quiet():
      found: Any = ocp.metadata(str(path))
    manifest = found.custom_metadata[_MANIFEST]
    described = _flatten(found.metadata)
    stored = {n: e for n, e in manifest.items() if 0 not in e['shape']}
    for name, entry in stored.items():
      on_disk = described[name]
      data_shape = entry['shape'] + entry.get('key_shape', [])
      if list(on_disk.shape) != data_shape:
        raise ValueError(f'`{name}` is {on_disk.shape}, not {data_shape}')
  except Exception as error:
    raise _corrupt(path, _first_line(error)) from error
  return _Opened(manifest, found.metadata)


def _read(path: pathlib.Path, opened: _Opened) -> dict[str, np.ndarray]:
  """All arrays of a checkpoint by leaf name, on the host, checked."""
  try:
    with _quiet():
      loaded = _flatten(ocp.load(str(path), opened.metadata))
  except Exception as error:
    raise _corrupt(path, _first_line(error)) from error
  arrays = {}
  for name, entry in opened.manifest.items():
    shape = entry['shape'] + entry.get('key_shape', [])
    dtype = jnp.dtype(entry['dtype'])
    array = loaded[name] if name in loaded else np.zeros(shape, dtype)
    array = np.asarray(array)
    if _sha256(array) != entry['sha256']:
      raise _corrupt(path, f'`{name}` has not the content it was saved with')
    arrays[name] = array
  return arrays


def _named_leaves(value: Any) -> dict[str, Any]:
  """Leaves by path string, in the tree's own order."""
  paths = jax.tree_util.tree_leaves_with_path(value)
  named = {tree.path_string(path) or _ROOT: leaf for path, leaf in paths}
  if len(named) != len(paths):
    raise ValueError(
      'Two leaves of the tree have the same path as a string; rename keys that '
      "contain '/' or differ only in type."
    )
  return named


def _nest(named: dict[str, Any]) -> Any:
  """{'a/b': x} as {'a': {'b': x}}, so that other readers see the tree."""
  nested: dict[str, Any] = {}
  for name, leaf in named.items():
    *folders, last = name.split('/')
    inner = nested
    for folder in folders:
      inner = inner.setdefault(folder, {})
      if not isinstance(inner, dict):
        break
    if not isinstance(inner, dict) or last in inner:
      raise ValueError(
        f"`{name}` is both a leaf and a branch; rename keys that contain '/'."
      )
    inner[last] = leaf
  return nested


def _flatten(nested: Any) -> dict[str, Any]:
  """The inverse of `_nest`; leaves may be anything but dicts."""
  paths = jax.tree_util.tree_leaves_with_path(
    nested, is_leaf=lambda x: not isinstance(x, dict)
  )
  return {tree.path_string(path): leaf for path, leaf in paths}


def _is_key(leaf: Any) -> bool:
  dtype = getattr(leaf, 'dtype', None)
  return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _to_host(name: str, leaf: Any) -> np.ndarray:
  """A leaf as NumPy array; explicit, as launchers forbid implicit transfers."""
  if _is_key(leaf):
    leaf = jax.random.key_data(leaf)
  array = np.asarray(jax.device_get(leaf))
  if array.dtype.kind in 'OSUMm':
    raise TypeError(
      f'`{name}` is a {type(leaf).__name__}; checkpoints hold arrays and '
      'numbers, text belongs on the card.'
    )
  return array


def _describe(leaf: Any, array: np.ndarray) -> dict[str, Any]:
  """A leaf's entry of the manifest; `shape` is the shape the user sees."""
  entry = {
    'shape': list(np.shape(leaf)),
    'dtype': str(array.dtype),
    'sha256': _sha256(array),
  }
  if _is_key(leaf):
    entry['key_impl'] = str(jax.random.key_impl(leaf))
    entry['key_shape'] = list(array.shape[np.ndim(leaf) :])
  return entry


def _abstract(entry: dict[str, Any]) -> jax.ShapeDtypeStruct:
  shape, dtype = tuple(entry['shape']), jnp.dtype(entry['dtype'])
  if 'key_impl' in entry:
    impl = entry['key_impl']
    dtype = jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype
  return jax.ShapeDtypeStruct(shape, dtype)


def _restore(
  path: pathlib.Path,
  name: str,
  array: np.ndarray,
  entry: dict[str, Any],
  template: Any,
) -> Any:
  """A stored array as the kind of leaf the template is."""
  if 'key_impl' in entry:
    data = jax.device_put(array)
    return jax.random.wrap_key_data(data, impl=entry['key_impl'])
  if isinstance(template, (bool, int, float, complex)):
    return array.item()
  wanted = np.dtype(template.dtype)
  cast = array.astype(wanted)
  # Only widths can differ here, such as int64 on the host and int32 in JAX.
  if cast.dtype != array.dtype and not np.array_equal(cast, array, True):
    raise ValueError(
      f'Cannot load {path}: `{name}` is {array.dtype} in the checkpoint and '
      f'its values do not fit {wanted}; ask for {array.dtype}.'
    )
  if isinstance(template, np.generic):
    return cast[()]
  return cast if isinstance(template, np.ndarray) else jax.device_put(cast)


def _sha256(array: np.ndarray) -> str:
  content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  header = f'{array.dtype}{array.shape}'.encode()
  return files.sha256(header + content.tobytes())


def _content(manifest: dict[str, dict[str, Any]]) -> str:
  return files.sha256(digest.canonical_json(manifest).encode())
