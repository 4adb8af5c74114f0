"""From a network to a `types.Classifier`: pure functions of a `ModelState`.

A network here takes normalized images and a `taps.Taps`, which it calls at
every named place. What surrounds it, the same for all, is written once:
normalization, the taps 'input' (images in [0, 1]) and 'logits', edits, checks
and the static facts, read off an abstract forward pass.
"""

from collections.abc import Callable, Collection
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from bdjax import checks, registry, types
from bdjax.models import initial, precision
from bdjax.models import taps as taps_lib

_NO_EDITS: types.Edits = MappingProxyType({})


def from_functions(
  init: Callable[[jax.Array], types.ModelState],
  forward: Callable[..., tuple[jax.Array, types.PyTree]],
  spec: types.DataSpec,
  *,
  arch: str,
  conv_taps: tuple[str, ...] = (),
  prune_graph: tuple[types.PruneGroup, ...] = (),
  head_path: tuple[str, ...] = ('head',),
  norm_decay: float = 0.9,
) -> types.Classifier:
  """A classifier from a network that is already pure.

  Args:
    init: key -> ModelState.
    forward: (state, normalized images, tap, train, key) -> (logits, running
      statistics); calls `tap` at its named places, 'penultimate' among them.
    spec: image shape, number of classes and normalization.
    arch: registry key.
    conv_taps: outputs of all non-shortcut convolutions.
    prune_graph: one entry per BatchNorm layer, by forward depth.
    head_path: path of the last linear layer in `params`.
    norm_decay: weight of the old running statistics in one update.

  Returns:
    The classifier. Beyond the common signature, `apply` takes `key`, for
    networks that are random in training, and `features` takes `taps`, names to
    keep besides 'penultimate' and 'logits', which spares memory outside jit;
    both take `dtype`, that of the activations (see `models.in_dtype`).

  Raises:
    ValueError: if the network has no tap 'penultimate', or if `conv_taps`,
      `prune_graph` or `head_path` name what it does not have.
  """

  def run(state, images, train, edits, wanted, key, dtype=None):
    tap = taps_lib.Taps(edits, wanted)
    inputs = _normalize(tap('input', images), spec)
    here, lowered = precision.lowered(state, inputs, dtype)
    logits, stats = forward(here, lowered, tap, train, key)
    logits = tap('logits', logits.astype(inputs.dtype))
    return logits, types.ModelState(params=state.params, batch_stats=stats), tap

  abstract, names = _trace(init, run, spec)
  info = types.ClassifierInfo(
    arch=arch,
    num_classes=spec.num_classes,
    image_shape=spec.image_shape,
    mean=spec.mean,
    std=spec.std,
    taps=names,
    conv_taps=conv_taps,
    head_path=head_path,
    norm_paths=tuple(group.norm for group in prune_graph),
    prune_graph=prune_graph,
    norm_decay=norm_decay,
  )
  _check_info(info, abstract.params)

  def apply(
    state, images, *, train=False, edits=_NO_EDITS, key=None, dtype=None
  ):
    _check_call(info, images, edits)
    logits, state, _ = run(state, images, train, edits, (), key, dtype)
    return logits, state

  def features(
    state,
    images,
    *,
    train=False,
    edits=_NO_EDITS,
    taps=None,
    key=None,
    dtype=None,
  ):
    _check_call(info, images, edits, taps or ())
    wanted = None if taps is None else {*taps, 'penultimate', 'logits'}
    return run(state, images, train, edits, wanted, key, dtype)[-1].seen

  return types.Classifier(init=init, apply=apply, features=features, info=info)


def from_linen(
  net: nn.Module,
  spec: types.DataSpec,
  *,
  draw: Callable[[jax.Array, types.PyTree], types.PyTree] | None = None,
  needs_key: bool = False,
  **facts,
) -> types.Classifier:
  """A classifier from a Linen module.

  Args:
    net: called as net(images, tap, train) on normalized images [b, h, w, c];
      gives logits [b, n].
    spec: image shape, number of classes and normalization.
    draw: (key, abstract params) -> initial params, such as those of
      `models.initial`; None takes the module's own initializers.
    needs_key: whether training draws random numbers, such as dropout's.
    **facts: those of `from_functions`.

  Returns:
    The classifier.
  """

  def own_init(key):
    images = jnp.zeros((1, *spec.image_shape), jnp.float32)
    variables = net.init(key, images, taps_lib.Taps(), False)
    return types.ModelState(
      params=variables['params'],
      batch_stats=variables.get('batch_stats', {}),
    )

  shapes = jax.eval_shape(own_init, jax.random.key(0))

  @jax.jit  # one program; the forward pass inside `own_init` compiles away
  def drawn(key):
    if draw is None:
      return own_init(key)
    return types.ModelState(
      params=draw(key, shapes.params),
      batch_stats=initial.statistics(shapes.batch_stats),
    )

  def init(key: jax.Array) -> types.ModelState:
    checks.typed_key(key=key)
    return drawn(key)

  def forward(state, images, tap, train, key):
    if train and needs_key and key is None:
      raise ValueError(
        f"'{facts['arch']}' draws random numbers in training; call apply with "
        '`key=`, or make it without dropout and stochastic depth.'
      )
    logits, changed = net.apply(
      {'params': state.params, 'batch_stats': state.batch_stats},
      images,
      tap,
      train,
      rngs={} if key is None else {'dropout': key},
      mutable=['batch_stats'],
    )
    moved = changed.get('batch_stats', {})
    return logits, moved if train else state.batch_stats

  return from_functions(init, forward, spec, **facts)


def from_nnx(
  make_net: Callable[[nnx.Rngs], nnx.Module], spec: types.DataSpec, **facts
) -> types.Classifier:
  """A classifier from an NNX module.

  Args:
    make_net: builds the network from `nnx.Rngs`; the network is called as
      net(images, tap) on normalized images [b, h, w, c], gives logits [b, n]
      and holds `nnx.Param` and `nnx.BatchStat` variables only.
    spec: image shape, number of classes and normalization.
    **facts: those of `from_functions`; paths are attribute names.

  Returns:
    The classifier; its trees are plain nested dicts.

  Raises:
    ValueError: if the network holds other variables, such as random streams.
  """

  def split(net):
    graph, params, stats, rest = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
    if jax.tree.leaves(rest):
      raise ValueError(
        f'The network holds more than weights and running statistics: {rest}; '
        'leave out layers with random streams, such as dropout.'
      )
    return graph, params, stats

  graph, params, stats = split(nnx.eval_shape(lambda: make_net(nnx.Rngs(0))))

  def init(key: jax.Array) -> types.ModelState:
    checks.typed_key(key=key)
    _, params, stats = split(make_net(nnx.Rngs(key)))
    return types.ModelState(
      params=nnx.to_pure_dict(params), batch_stats=nnx.to_pure_dict(stats)
    )

  def forward(state, images, tap, train, key):
    del key
    net = nnx.merge(
      graph, _filled(params, state.params), _filled(stats, state.batch_stats)
    )
    net.train() if train else net.eval()
    logits = net(images, tap)
    if not train:
      return logits, state.batch_stats
    return logits, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat))

  return from_functions(init, forward, spec, **facts)


def _filled(abstract, values):
  """An nnx state of the abstract one's structure holding the values."""
  return jax.tree.unflatten(
    jax.tree.structure(abstract), jax.tree.leaves(values)
  )


def _normalize(images: jax.Array, spec: types.DataSpec) -> jax.Array:
  mean = jnp.asarray(spec.mean, images.dtype).reshape(1, 1, 1, -1)
  std = jnp.asarray(spec.std, images.dtype).reshape(1, 1, 1, -1)
  return (images - mean) / std


def _trace(init, run, spec) -> tuple[types.ModelState, tuple[str, ...]]:
  """Abstract state and tap names of one forward pass that computes nothing."""
  names = []

  def forward(key):
    state = init(key)
    images = jnp.zeros((1, *spec.image_shape), jnp.float32)
    names.extend(run(state, images, False, {}, None, None)[-1].seen)
    return state

  return jax.eval_shape(forward, jax.random.key(0)), tuple(names)


def _check_info(info: types.ClassifierInfo, params) -> None:
  if 'penultimate' not in info.taps:
    raise ValueError(
      f"'{info.arch}' has no tap 'penultimate'; call tap('penultimate', x) on "
      'the input of the last layer.'
    )
  _check_taps(info, info.conv_taps, 'conv_taps')
  norm_inputs = [f'{g.tap}.in' for g in info.prune_graph if g.tap is not None]
  _check_taps(info, norm_inputs, 'prune_graph')
  convs = [
    path
    for group in info.prune_graph
    for path in (group.conv, group.previous)
    if path is not None
  ]
  for path in (info.head_path, *info.norm_paths, *convs):
    node = params
    for name in path:
      if name not in node:
        raise ValueError(
          f"'{info.arch}' has no parameters at {path}: no '{name}' among "
          f'{", ".join(map(str, node))}.'
        )
      node = node[name]


def _check_taps(
  info: types.ClassifierInfo, names: Collection[str], argument: str
) -> None:
  for name in names:
    if name not in info.taps:
      raise registry.UnknownName(
        f"Unknown tap '{name}' in `{argument}` of '{info.arch}'. "
        f'{checks.suggest(name, info.taps)}'
      )


def _check_call(info, images, edits, taps=()) -> None:
  """Raises where shapes, dtypes or names cannot be meant."""
  _check_taps(info, edits, 'edits')
  _check_taps(info, taps, 'taps')
  if images.ndim != 4 or images.shape[1:] != info.image_shape:
    raise ValueError(
      f"`images` has shape {images.shape}; '{info.arch}' was made for "
      f'[b, {", ".join(map(str, info.image_shape))}]. Resize the images or '
      'make the classifier from their DataSpec.'
    )
  checks.unit_images(images=images)
