"""Weights between torch's names and layouts and this library's.

Convolutions go from (O, I, h, w) to (h, w, I, O), linear layers from (O, I) to
(I, O); a norm's weight is its scale, its running statistics are `batch_stats`.
Torch flattens maps as (C, H, W) and this library as (H, W, C), which reorders
the rows of a first linear layer that follows a flattened map. Counters of
batches seen are dropped.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import models, registry, tree, types

_COUNTER = 'num_batches_tracked'
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_ORDER = ('weight', 'bias', 'running_mean', 'running_var')  # within a module
# Within a block.
_PREACT = ('bn1', 'conv1', 'bn2', 'conv2', 'shortcut')
_RESNET = 'conv1 bn1 conv2 bn2 conv3 bn3 shortcut shortcut_bn'.split()
_LISTED = 6  # names an error message shows


class Layout(NamedTuple):
  """How torch lays an architecture out.

  Attributes:
    module: path of a module in `params` -> (its name in torch, a key that
      sorts modules as torch lists them).
    flattened: name of the linear layer that reads a flattened map; '' = none.
    side: height and width of that map.
  """

  module: Callable[[tuple[str, ...]], tuple[str, Any]]
  flattened: str = ''
  side: int = 0


class Converted(NamedTuple):
  """Weights brought into this library's form.

  Attributes:
    model: the state.
    by_position: whether names did not fit and order decided.
  """

  model: types.ModelState
  by_position: bool


class _Slot(NamedTuple):
  """One array of a state: its name in torch and its place here."""

  name: str
  place: str
  shape: tuple[int, ...]  # in torch's layout


def _preactresnet(path: tuple[str, ...]) -> tuple[str, Any]:
  return _residual(path, _PREACT)


def _resnet(path: tuple[str, ...]) -> tuple[str, Any]:
  return _residual(path, _RESNET)


def _residual(path, block_order) -> tuple[str, Any]:
  """Stages of blocks between a stem and a head."""
  ends = {'stem': 'conv1', 'stem_bn': 'bn1', 'head': 'linear'}
  if path[0] in ends:
    return ends[path[0]], (9 * (path[0] == 'head'), path[0] == 'stem_bn', 0)
  stage, block = path[0].removeprefix('stage').split('_')
  shortcuts = {'shortcut': 'shortcut.0', 'shortcut_bn': 'shortcut.1'}
  order = int(stage), int(block), block_order.index(path[1])
  return f'layer{stage}.{block}.{shortcuts.get(path[1], path[1])}', order


def _vgg(path: tuple[str, ...]) -> tuple[str, Any]:
  part, _, index = path[0].partition('_')
  if part == 'head':
    part, index = 'classifier', '6'
  return f'{part}.{index}', (part == 'classifier', int(index))


def _tiny(path: tuple[str, ...]) -> tuple[str, Any]:
  order = ('conv1', 'bn1', 'conv2', 'bn2', 'head')
  return path[0], order.index(path[0])


LAYOUTS: dict[str, Layout] = {
  'preactresnet18': Layout(_preactresnet),
  'resnet18': Layout(_resnet),
  'resnet50': Layout(_resnet),
  'tiny': Layout(_tiny),
  'vgg19_bn': Layout(_vgg, flattened='classifier.0', side=7),
}


def options(arch: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """The options of the architecture that weights were made with.

  Args:
    arch: registry key of the architecture.
    arrays: a torch state dictionary.

  Returns:
    {'width': channels of the first convolution} and, for ResNets, their
    'stem'; what equals the default is left out, as configs do.

  Raises:
    UnknownName: for an architecture without a layout.
    ValueError: if there is no convolution.
  """
  registry.get(LAYOUTS, arch, 'torch layout')
  convolutions = [np.shape(x) for x in arrays.values() if np.ndim(x) == 4]
  if not convolutions:
    raise ValueError(
      f'The state dictionary has no convolution (weights of 4 axes), so it is '
      f"no '{arch}'; give the one that torch's model.state_dict() returns."
    )
  channels, _, size, _ = convolutions[0]
  found = {'width': channels, 'stem': 'small' if size == 3 else 'imagenet'}
  factory = registry.get(models.REGISTRY, arch, 'architecture')
  known = inspect.signature(factory).parameters
  return {
    name: value
    for name, value in found.items()
    if name in known and known[name].default != value
  }


def from_torch(
  arrays: Mapping[str, np.ndarray], classifier: types.Classifier
) -> Converted:
  """A torch state dictionary as a model state.

  Arrays are matched by name, without a leading 'module.'. Where names do not
  fit but as many arrays come in torch's order with the right shapes, they are
  matched by position.

  Args:
    arrays: state dictionary, NumPy arrays by torch's names in its order.
    classifier: the network, of the same width and number of classes.

  Returns:
    The state in float32, and how it was matched.

  Raises:
    UnknownName: for an architecture without a layout.
    ValueError: naming what is missing, unexpected or of another shape.
    TypeError: if weights are not floats.
  """
  arch = classifier.info.arch
  slots = _slots(classifier)
  given = _cleaned(arrays)
  wanted = {slot.name: slot for slot in slots}
  by_position = given.keys() != wanted.keys()
  if by_position:
    given = _by_position(arch, given, slots)
  _check_shapes(arch, given, slots)
  _check_values(given)
  layout, found = LAYOUTS[arch], {}
  for slot in slots:
    found[slot.place] = _to_here(layout, slot.name, given[slot.name])
  like = jax.eval_shape(classifier.init, jax.random.key(0))
  place = lambda part: jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.asarray(found[_place(part, path)]), getattr(like, part)
  )
  model = types.ModelState(
    params=place('params'), batch_stats=place('batch_stats')
  )
  return Converted(model, by_position)


def to_torch(
  state: types.ModelState, classifier: types.Classifier
) -> dict[str, np.ndarray]:
  """A model state as a torch state dictionary.

  Args:
    state: one model.
    classifier: its network.

  Returns:
    NumPy arrays by torch's names, in its layouts and order, without counters;
    `{k: torch.from_numpy(v) for …}` loads with `strict=False`.

  Raises:
    UnknownName: for an architecture without a layout.
  """
  values = {}
  for part in ('params', 'batch_stats'):
    leaves = jax.tree_util.tree_leaves_with_path(getattr(state, part))
    values |= {_place(part, path): np.asarray(leaf) for path, leaf in leaves}
  layout = LAYOUTS[classifier.info.arch]
  return {
    slot.name: _to_torch(layout, slot.name, values[slot.place])
    for slot in _slots(classifier)
  }


def _place(part: str, path) -> str:
  return f'{part}/{tree.path_string(path)}'


def _slots(classifier: types.Classifier) -> list[_Slot]:
  """All arrays of a network in torch's order."""
  layout = registry.get(LAYOUTS, classifier.info.arch, 'torch layout')
  like = jax.eval_shape(classifier.init, jax.random.key(0))
  found = []
  for part in ('params', 'batch_stats'):
    for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(like, part)):
      *module, last = tree.path_string(path).split('/')
      name, order = layout.module(tuple(module))
      leaf_name = _LEAVES[last]
      slot = _Slot(
        f'{name}.{leaf_name}', _place(part, path), _torch_shape(leaf.shape)
      )
      found.append(((order, _ORDER.index(leaf_name)), slot))
  return [slot for _, slot in sorted(found, key=lambda pair: pair[0])]


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  if len(shape) == 4:
    return shape[3], shape[2], shape[0], shape[1]
  return shape[::-1]


def _is_flattened(layout: Layout, name: str) -> bool:
  return name == f'{layout.flattened}.weight'


def _to_here(layout: Layout, name: str, value: np.ndarray) -> np.ndarray:
  value = np.asarray(value, np.float32)
  if value.ndim == 4:
    return value.transpose(2, 3, 1, 0)
  if _is_flattened(layout, name):
    maps = value.reshape(len(value), -1, layout.side, layout.side)
    return maps.transpose(2, 3, 1, 0).reshape(-1, len(value))
  return value.T


def _to_torch(layout: Layout, name: str, value: np.ndarray) -> np.ndarray:
  if value.ndim == 4:
    return value.transpose(3, 2, 0, 1)
  if _is_flattened(layout, name):
    outputs = value.shape[1]
    maps = value.reshape(layout.side, layout.side, -1, outputs)
    return maps.transpose(3, 2, 0, 1).reshape(outputs, -1)
  return value.T


def _cleaned(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Without the prefix of parallel training and without counters."""
  clean = {}
  for name, value in arrays.items():
    if name.rsplit('.', 1)[-1] != _COUNTER:
      clean[name.removeprefix('module.')] = np.asarray(value)
  return clean


def _by_position(arch, given, slots) -> dict[str, np.ndarray]:
  """Arrays renamed by their order; only where all of their shapes fit."""
  shapes = [value.shape for value in given.values()]
  if shapes == [slot.shape for slot in slots]:
    values = given.values()
    return {s.name: v for s, v in zip(slots, values, strict=True)}
  wanted = {slot.name for slot in slots}
  raise ValueError(
    f"The state dictionary is not that of '{arch}': missing "
    f'{_listed(n for n in wanted if n not in given)}; unexpected '
    f'{_listed(n for n in given if n not in wanted)}. Its {len(given)} arrays '
    f'do not fit the {len(slots)} of the network by position either; choose '
    f'another architecture ({", ".join(LAYOUTS)}), or rename its keys.'
  )


def _listed(names: Iterable[str]) -> str:
  names = sorted(names)
  more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
  return (', '.join(names[:_LISTED]) or 'nothing') + more


def _check_shapes(arch, given, slots) -> None:
  odd = [
    f'`{s.name}` is {given[s.name].shape} in the file and {s.shape} in the '
    'network'
    for s in slots
    if given[s.name].shape != s.shape
  ]
  if odd:
    more = f'; {len(odd) - _LISTED} more' if len(odd) > _LISTED else ''
    raise ValueError(
      f"The weights do not fit '{arch}': {'; '.join(odd[:_LISTED])}{more}. "
      'Make the network with the width, the number of classes and the image '
      'size that the weights were trained with.'
    )


def _check_values(given: Mapping[str, np.ndarray]) -> None:
  for name, value in given.items():
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise TypeError(
        f'`{name}` has dtype {value.dtype}; weights are floats. Quantized '
        'models are not read, save the one before quantization.'
      )
    if name.endswith('running_var') and not np.all(
      value.astype(np.float32) >= 0
    ):
      raise ValueError(
        f'`{name}` has negative or undefined variances; the file is damaged, '
        "or its arrays are not in torch's order."
      )
