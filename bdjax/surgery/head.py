"""The last linear layer, apart from everything before it."""

import jax

from bdjax import checks, types


def split_head(
  classifier: types.Classifier, params: types.PyTree
) -> tuple[types.PyTree, types.PyTree]:
  """Takes the last linear layer out of the parameters.

  Args:
    classifier: the network; `info.head_path` is read.
    params: its parameters.

  Returns:
    (head, body): the layer's own parameters, and all others in their places.
  """
  return _pop(params, classifier.info.head_path)


def join_head(
  classifier: types.Classifier, head: types.PyTree, body: types.PyTree
) -> types.PyTree:
  """Puts a head back; the inverse of `split_head`."""
  return _put(body, classifier.info.head_path, head)


def head_kernel(head: types.PyTree) -> jax.Array:
  """The matrix [d, n] of a head.

  Raises:
    ValueError: if the head has no matrix, or several.
  """
  found = [leaf for leaf in jax.tree.leaves(head) if leaf.ndim == 2]
  if len(found) != 1:
    raise ValueError(
      f'A linear head has one matrix, this one has {len(found)}; check '
      '`head_path` of the classifier.'
    )
  return found[0]


def random_head(key: jax.Array, head: types.PyTree) -> types.PyTree:
  """A head of the same shapes, uniform in ±1/√d, its bias too.

  Args:
    key: typed key.
    head: matrix [d, n], with or without a bias [n].

  Returns:
    A fresh head.
  """
  checks.typed_key(key=key)
  bound = head_kernel(head).shape[0] ** -0.5
  leaves, structure = jax.tree.flatten(head)
  fresh = [
    jax.random.uniform(k, leaf.shape, leaf.dtype, -bound, bound)
    for k, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, fresh)


def scale_kernel(head: types.PyTree, factor: float | jax.Array) -> types.PyTree:
  """Multiplies the matrix of a head and leaves its bias."""
  head_kernel(head)
  return jax.tree.map(lambda x: factor * x if x.ndim == 2 else x, head)


def _pop(params, path):
  """The subtree at `path`, and the tree without it."""
  name, *rest = path
  if not rest:
    return params[name], {k: v for k, v in params.items() if k != name}
  found, left = _pop(params[name], tuple(rest))
  return found, {**params, name: left}


def _put(params, path, subtree):
  """The tree with `subtree` put at `path`."""
  name, *rest = path
  if rest:
    subtree = _put(params[name], tuple(rest), subtree)
  return {**params, name: subtree}
