"""Shared types: what a model, a trigger, an attack and a defense are.

Everything that changes is a pytree; everything that does not is a static,
hashable record; a method is a `NamedTuple` of pure functions that connects
them. Tuples of functions are closed over, never passed through `jax.jit`.

Shapes: `b` batch, `h w c` image, `n` classes, `m` models of a stack, `N`
examples of a data set. Images are float32 in [0, 1] unless called uint8.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, dataclass_transform

import jax
from jaxtyping import Array, Bool, Float, Int, Int8, Key, UInt8

Image = Float[Array, 'h w c']
Images = Float[Array, 'b h w c']
ByteImages = UInt8[Array, 'b h w c']
Labels = Int[Array, ' b']
Logits = Float[Array, 'b n']
Mask = Bool[Array, ' b']
RandomKey = Key[Array, '']
PyTree = Any
Batch = dict[str, Any]
Metrics = dict[str, Any]
Edits = Mapping[str, Callable[[jax.Array], jax.Array]]

_T = TypeVar('_T')

CLEAN, POISONED, COVER = 0, 1, 2  # codes of `AttackState.kind`


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree(cls: type[_T]) -> type[_T]:
  """Registers a frozen, keyword-only dataclass whose fields are all arrays."""
  return jax.tree_util.register_dataclass(
    dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  )


@dataclass_transform(
  frozen_default=True,
  kw_only_default=True,
  field_specifiers=(dataclasses.field,),
)
def hparams(cls: type[_T]) -> type[_T]:
  """Registers hyper-parameters: float fields are traced, all others static.

  A field annotated `float` or `float | None` becomes a leaf of the pytree, so
  that it can be vmapped and changed without recompiling. Counts, names and
  flags are structure, and so are floats that decide a count, such as a ratio:
  `dataclasses.field(default=0.1, metadata={'static': True})`.
  """
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  traced, static = [], []
  for field in dataclasses.fields(cls):  # pyrefly: ignore[bad-argument-type]
    is_float = field.type in (float, float | None, 'float', 'float | None')
    is_traced = is_float and not field.metadata.get('static', False)
    (traced if is_traced else static).append(field.name)
  return jax.tree_util.register_dataclass(
    cls, data_fields=traced, meta_fields=static
  )


@pytree
class ModelState:
  """Weights and running statistics of one model, or of a stack of models.

  Attributes:
    params: nested dict of trainable arrays; a stack has a leading axis m.
    batch_stats: nested dict of BatchNorm running statistics, may be empty.
  """

  params: PyTree
  batch_stats: PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
  """Static facts of a data set.

  Attributes:
    name: registry key of the data set.
    image_shape: (h, w, c).
    num_classes: number of classes.
    mean: per-channel mean the model subtracts, in [0, 1] units.
    std: per-channel deviation the model divides by, in [0, 1] units.
    crop_padding: zero padding of the training crop in pixels; 0 = no crop.
    flip: whether training images are mirrored with probability 1/2.
  """

  name: str
  image_shape: tuple[int, int, int]
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  crop_padding: int = 0
  flip: bool = False


class PruneGroup(NamedTuple):
  """One BatchNorm layer and the convolution that produces its input.

  Attributes:
    norm: path of the norm's parameters, such as ('stage1_0', 'bn2').
    conv: path of the producing convolution, None where a sum feeds the norm.
    channels: number of channels.
    previous: path of the convolution before it in torch's module order: `conv`
      where there is one; where a residual sum feeds the norm, the convolution
      whose output was added last. For methods that are defined by that order.
    tap: the norm's name among the taps; its input is tapped as '<tap>.in'.
  """

  norm: tuple[str, ...]
  conv: tuple[str, ...] | None
  channels: int
  previous: tuple[str, ...] | None = None
  tap: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierInfo:
  """Static facts of a classifier.

  Attributes:
    arch: registry key of the architecture.
    num_classes: width of the logits.
    image_shape: (h, w, c) of the images it takes.
    mean: normalization it applies inside, per channel.
    std: normalization it applies inside, per channel.
    taps: names of all taps by forward depth.
    conv_taps: outputs of all non-shortcut convolutions in the stages; the
      layers of the backdoor existence coefficient.
    head_path: path of the last linear layer in `params`.
    norm_paths: paths of all BatchNorm layers in `params`.
    prune_graph: which convolution feeds which norm.
    norm_decay: weight of the old running statistics in one update.
  """

  arch: str
  num_classes: int
  image_shape: tuple[int, int, int]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  taps: tuple[str, ...]
  conv_taps: tuple[str, ...]
  head_path: tuple[str, ...]
  norm_paths: tuple[tuple[str, ...], ...]
  prune_graph: tuple[PruneGroup, ...]
  norm_decay: float = 0.9


class Classifier(NamedTuple):
  """A model as pure functions of a `ModelState`; normalization is inside.

  Attributes:
    init: key -> ModelState.
    apply: (state, images, *, train=False, edits={}) -> (logits, ModelState).
      The returned state carries new running statistics when `train`; the
      caller decides whether to keep them.
    features: (state, images, *, train=False, edits={}) -> {tap: activation},
      always with 'penultimate' and 'logits'; under jit unused taps are free.
    info: static facts. `edits` maps a tap name to a function put in there.
  """

  init: Callable[..., ModelState]
  apply: Callable[..., tuple[jax.Array, ModelState]]
  features: Callable[..., dict[str, jax.Array]]
  info: ClassifierInfo


class Trigger(NamedTuple):
  """A change of one image.

  Attributes:
    init: key -> params.
    apply: (params, image, key) -> image in [0, 1].
    info: short name.
  """

  init: Callable[[jax.Array], PyTree]
  apply: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
  info: str


@pytree
class AttackState:
  """What an attack remembers.

  Attributes:
    trigger: parameters of the trigger.
    kind: int8 [N], per training example CLEAN, POISONED or COVER; all CLEAN
      where no fixed subset is poisoned.
  """

  trigger: PyTree
  kind: Int8[Array, ' N']


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackInfo:
  """Static facts of an attack.

  Attributes:
    name: registry key.
    label_mode: 'all2one' or 'all2all'.
    target_label: class the trigger leads to; None for all-to-all.
    poison_ratio: poisoned examples / whole set, of each batch where no fixed
      subset is poisoned; None where a count was given, or where the loss is
      poisoned and no data are.
    clean_label: whether training labels stay untouched.
    order: whether the trigger comes before or after augmentation.
    fixed_subset: whether the same examples are poisoned in every epoch; False
      for attacks that poison some slots of every batch.
    cover_ratio: triggered examples that keep their label, counted as
      `poison_ratio`; None where there are none.
  """

  name: str
  label_mode: str
  target_label: int | None
  poison_ratio: float | None
  clean_label: bool = False
  order: Literal['poison_augment', 'augment_poison'] = 'poison_augment'
  fixed_subset: bool = True
  cover_ratio: float | None = None


class Attack(NamedTuple):
  """A backdoor attack as pure functions of an `AttackState`.

  Attributes:
    init: (key, images, labels) -> AttackState for the uint8 training set.
    poison: (state, batch, key) -> batch as the training loop sees it; float
      images in [0, 1] before augmentation (`info.order`).
    stamp: (state, images, key, index) -> images with the test-time trigger;
      `index` names the examples, so that randomness ignores batching.
    relabel: labels -> labels the trigger leads to.
    update: (state, classifier, model, batch, key) -> (state, metrics); learns
      the trigger along with the model, the identity for static attacks.
    objective: (state, classifier, model, batch, key) -> (loss, (logits,
      ModelState)); the training loss on a poisoned batch.
    info: static facts.
    cross: as `stamp`, with another trigger than the image's own, to which a
      model should not answer; None where the attack has none.
    augment: (images, keys [b]) -> images, in place of the data set's recipe
      when the attacker trains; None = the recipe.
    phases: (classifier, the training as one phase) -> all phases, where a
      trigger is learned before the model or the model goes on without it;
      None = that one phase. `Carry.extra` holds the AttackState throughout.
  """

  init: Callable[..., AttackState]
  poison: Callable[[AttackState, Batch, jax.Array], Batch]
  stamp: Callable[..., jax.Array]
  relabel: Callable[[jax.Array], jax.Array]
  update: Callable[..., tuple[AttackState, Metrics]]
  objective: Callable[..., tuple[jax.Array, Any]]
  info: AttackInfo
  cross: Callable[..., jax.Array] | None = None
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
  phases: Callable[..., tuple['Phase', ...]] | None = None


@pytree
class Carry:
  """What one phase hands to the next.

  Attributes:
    model: the model so far.
    extra: anything else a method leaves behind: masks, a polarizer, a
      perturbation; {} where there is nothing.
  """

  model: ModelState
  extra: PyTree


class Clock(NamedTuple):
  """When a step happens.

  Attributes:
    key: the step's own key, the same however steps are chunked.
    step: int32 [], counted from 0 within the phase.
    epoch: int32 [], counted from 0 within the phase.
    num_steps: steps of the whole phase.
    num_epochs: epochs of the whole phase, rounded up.
  """

  key: jax.Array
  step: jax.Array
  epoch: jax.Array
  num_steps: int
  num_epochs: int


Reads = Literal[
  'clean',
  'clean_fit',
  'clean_val',
  'train',
  'pool',
  'test_clean',
  'test_triggered',
  'none',
]


class Phase(NamedTuple):
  """One stretch of steps over one source of data; the loop is elsewhere.

  Its length is `num_steps`, or `num_epochs` passes over what it reads, or
  nothing at all for one-shot methods that do their work in `init`.

  Attributes:
    name: short name, unique within a method.
    init: (key, Carry) -> S.
    step: (S, batch, clock) -> (S, metrics of scalars).
    finish: S -> Carry.
    num_steps: length in steps, static.
    num_epochs: length in epochs, static.
    batch_size: examples per step; an epoch smaller than this is one batch.
    reads: 'clean' (the defender's reserve), 'clean_fit' and 'clean_val' (four
      fifths of it and the rest, made by the loop), 'train' (possibly
      poisoned), 'pool' (a re-activation attacker's own images), 'test_clean'
      and 'test_triggered' (what no defender has; only to reproduce selections
      published with it) or 'none'.
    augment: True for the data set's recipe, or (images, keys) -> images.
    drop_last: whether an epoch's short last batch is dropped; otherwise it is
      filled by wrapping round to the epoch's beginning.
    grad_passes: batches whose gradient one step takes, whatever with respect
      to; the cost of a method apart from any machine.
    done: a metric that turns true once no step changes anything any more, so
      that the loop may leave out the rest; '' = none.
  """

  name: str
  init: Callable[[jax.Array, Carry], Any]
  step: Callable[[Any, Batch, Clock], tuple[Any, Metrics]]
  finish: Callable[[Any], Carry]
  num_steps: int = 0
  num_epochs: int = 0
  batch_size: int = 0
  reads: Reads = 'none'
  augment: bool | Callable[..., jax.Array] = False
  drop_last: bool = True
  grad_passes: int = 1
  done: str = ''


def keep_classifier(classifier: Classifier, extra: PyTree) -> Classifier:
  """The `deploy` of a defense that leaves nothing in the forward pass."""
  del extra
  return classifier


class Defense(NamedTuple):
  """A defense: phases that change a model, and what is deployed afterwards.

  Attributes:
    phases: run one after another by `training.run_phases`.
    deploy: (classifier, extra) -> the Classifier used at inference.
    info: name of the method.
  """

  phases: tuple[Phase, ...]
  deploy: Callable[[Classifier, PyTree], Classifier] = keep_classifier
  info: str = ''


class Reactivation(NamedTuple):
  """A re-activation attack: phases whose final extra is a trigger's params.

  Attributes:
    phases: as those of a defense; the model stays untouched.
    trigger: put on top of the original one; None where the attack changes the
      model and fires the plain trigger.
    info: name of the method.
  """

  phases: tuple[Phase, ...]
  trigger: Trigger | None
  info: str = ''


class Detector(NamedTuple):
  """A detector; a larger score is more suspicious, thresholds live in eval.

  Attributes:
    fit: (key, classifier, state, data) -> fitted state.
    score: (fitted state, data) -> scores.
    info: name of the method.
  """

  fit: Callable[..., PyTree]
  score: Callable[..., jax.Array]
  info: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exec:
  """How a function is run over a stack; never what it computes.

  Attributes:
    mode: 'vmap' one batched program; 'map' one program, `chunk` models at a
      time; 'loop' a Python loop over one program; 'shard' spread over devices.
    chunk: models at a time; None = from `memory_budget`.
    memory_budget: bytes for the live models of one chunk; None = the chunk
      measured to be fastest on such a device, and where there is none half of
      what it reports, or 4 GiB where it reports nothing.
    donate: whether the stack's buffers may be reused for the result. Saves its
      size under 'vmap'; a 'map' reads them to its end and works on a copy.
    precision: matmul precision, 'default' | 'high' | 'highest' | 'bfloat16'.
    remat: whether the lifted function is rematerialized in the backward pass.
  """

  mode: Literal['vmap', 'map', 'loop', 'shard'] = 'map'
  chunk: int | None = None
  memory_budget: int | None = None
  donate: bool = False
  precision: str = 'default'
  remat: bool = False
