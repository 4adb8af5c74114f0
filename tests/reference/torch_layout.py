"""PreAct-ResNet18 between torch's names and layouts and this library's.

`layer2.0.conv1.weight` (O, I, h, w) is `stage2_0/conv1/kernel` (h, w, I, O),
`linear.weight` (O, I) is `head/kernel` (I, O), a norm's `weight` is its
`scale`. The reference files next to this one keep torch's side.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import tree, types

_MODULES = {'conv1': 'stem', 'linear': 'head'}
_STATISTICS = {'running_mean': 'mean', 'running_var': 'var'}


def from_torch_name(name: str) -> str:
  """'layer2.0.conv1.weight' -> 'stage2_0/conv1/kernel'."""
  *module, leaf = name.replace('shortcut.0', 'shortcut').split('.')
  if module[0].startswith('layer'):
    stage = module[0].replace('layer', 'stage')
    path = [f'{stage}_{module[1]}', module[2]]
  else:
    path = [_MODULES[module[0]]]
  if leaf == 'weight':
    leaf = 'scale' if path[-1].startswith('bn') else 'kernel'
  return '/'.join([*path, _STATISTICS.get(leaf, leaf)])


def to_torch_name(path: str) -> str:
  """'stage2_0/conv1/kernel' -> 'layer2.0.conv1.weight'."""
  *module, leaf = path.split('/')
  if module[0].startswith('stage'):
    stage, block = module[0].replace('stage', 'layer').split('_')
    name = [stage, block, module[1].replace('shortcut', 'shortcut.0')]
  else:
    name = [{v: k for k, v in _MODULES.items()}[module[0]]]
  if leaf in ('kernel', 'scale'):
    leaf = 'weight'
  leaf = {v: k for k, v in _STATISTICS.items()}.get(leaf, leaf)
  return '.'.join([*name, leaf])


def to_torch_array(value) -> np.ndarray:
  """(h, w, I, O) -> (O, I, h, w), (I, O) -> (O, I), vectors unchanged."""
  value = np.asarray(value)
  return value.transpose((3, 2, 0, 1)) if value.ndim == 4 else value.T


def from_torch_array(value) -> np.ndarray:
  """(O, I, h, w) -> (h, w, I, O), (O, I) -> (I, O), vectors unchanged."""
  value = np.asarray(value)
  return value.transpose((2, 3, 1, 0)) if value.ndim == 4 else value.T


def to_torch(values: types.PyTree) -> dict[str, np.ndarray]:
  """Params, gradients or running statistics by torch name, in its layout."""
  return {
    to_torch_name(tree.path_string(path)): to_torch_array(value)
    for path, value in jax.tree_util.tree_leaves_with_path(values)
  }


def from_torch(arrays, like: types.PyTree) -> types.PyTree:
  """Arrays by torch name as a tree shaped like `like`, dtypes kept.

  Raises:
    ValueError: if a shape differs.
    KeyError: if an array is missing.
  """

  def pick(path, leaf):
    name = to_torch_name(tree.path_string(path))
    value = from_torch_array(arrays[name])
    if value.shape != leaf.shape:
      raise ValueError(f'{name} is {value.shape}, expected {leaf.shape}.')
    return jnp.asarray(value)

  return jax.tree_util.tree_map_with_path(pick, like)


def load_state(path, classifier: types.Classifier) -> types.ModelState:
  """A model state from a file of torch tensors by torch name.

  Args:
    path: npz file; step counters of norms are ignored.
    classifier: PreAct-ResNet18 of the file's width and number of classes.

  Returns:
    The state in the file's precision.
  """
  with np.load(path) as file:
    arrays = {k: file[k] for k in file if 'num_batches' not in k}
  like = jax.eval_shape(classifier.init, jax.random.key(0))
  state = types.ModelState(
    params=from_torch(arrays, like.params),
    batch_stats=from_torch(arrays, like.batch_stats),
  )
  unused = arrays.keys() - {
    *to_torch(state.params),
    *to_torch(state.batch_stats),
  }
  if unused:
    raise ValueError(f'{path} also holds {sorted(unused)}.')
  return state
