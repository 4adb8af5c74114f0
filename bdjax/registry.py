"""Registries: plain dictionaries of entries, with a helpful miss.

Each room of methods keeps `REGISTRY: dict[str, Entry]`; the same dictionary
drives the launchers, the contract tests and the method table of the README.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from bdjax import checks

_E = TypeVar('_E')

Make = Callable[..., Any]

_FLOATS = (float, float | None, 'float', 'float | None')

KINDS = ('attack', 'defense', 'detection', 'reactivation', 'analysis')
STAGES = (
  'pre_training',
  'training',
  'post_training',
  'deployment',
  'inference',
)
ACCESS = (
  'white_box',
  'black_box_score',
  'black_box_decision',
  'transfer',
  'data_only',
  'training_control',
)
VMAPPABLE = (
  'checkpoints',
  'seeds',
  'classes',
  'thresholds',
  'float_hparams',
  'samples',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodInfo:
  """Facts of a method, after the life-cycle taxonomy of Wu et al. (2023).

  Attributes:
    kind: one of `KINDS`.
    stage: life-cycle stage it acts in, one of `STAGES`.
    category: branch of the taxonomy, a slug.
    subcategory: finer branch, a slug.
    access: what it must hold, one of `ACCESS`.
    needs: data it needs, such as 'clean_labelled' or 'poisoned_train_set'; a
      defense with 'trigger_known' is an upper bound made with `stamp`.
    outputs: 'model', 'trigger', 'perturbation', 'sample_scores', ….
    vmappable: axes it can be mapped over, from `VMAPPABLE`.
    tags: further properties, such as 'visible' or 'label_inconsistent'.
    paradigm: 'backdoor', 'weight' or 'adversarial_example'.
    modality: 'image' or 'image_text'.
    paper: title.
    venue: where it appeared.
    year: when it appeared.
    reference_repo: owner/name of the official code, '' where there is none.
    status: 'implemented', 'candidate' or 'metadata'.
  """

  kind: str
  stage: str
  category: str
  access: str
  outputs: str
  paper: str
  venue: str
  year: int
  subcategory: str = ''
  needs: tuple[str, ...] = ()
  vmappable: tuple[str, ...] = ('checkpoints', 'seeds', 'float_hparams')
  tags: tuple[str, ...] = ()
  paradigm: str = 'backdoor'
  modality: str = 'image'
  reference_repo: str = ''
  status: str = 'implemented'

  def __post_init__(self):
    checks.one_of(KINDS, kind=self.kind)
    checks.one_of(STAGES, stage=self.stage)
    checks.one_of(ACCESS, access=self.access)
    for axis in self.vmappable:
      checks.one_of(VMAPPABLE, vmappable=axis)


class Entry(NamedTuple):
  """One method of a room.

  Attributes:
    make: attacks: (DataSpec, hp, assets={}) -> Attack; all other rooms:
      (Classifier, hp) -> Defense | Reactivation | Detector; defenses that need
      'trigger_known' also take stamp=, the victim's test-time trigger.
    hparams: the dataclass of its hyper-parameters; `hparams()` is the paper's
      CIFAR-10 setting.
    info: facts of the method.
  """

  make: Make
  hparams: type
  info: MethodInfo


def get(registry: Mapping[str, _E], name: str, room: str) -> _E:
  """Looks a name up.

  Args:
    registry: the room's dictionary.
    name: registry key.
    room: what an entry is, in the singular: 'defense', 'data set', ….

  Returns:
    The entry.

  Raises:
    KeyError: with the nearest known name.
  """
  if name not in registry:
    raise UnknownName(
      f"Unknown {room} '{name}'. {checks.suggest(name, registry)}"
    )
  return registry[name]


class UnknownName(KeyError):
  """A name that is in no registry; its message survives `str()` unquoted."""

  def __str__(self) -> str:
    return str(self.args[0])


def make_hparams(cls: type[_E], values: Mapping[str, Any]) -> _E:
  """Builds hyper-parameters from a plain mapping, as configs hold them.

  Args:
    cls: a class made by `types.hparams`.
    values: field values; None keeps the default; lists become tuples, also
      within each other.

  Returns:
    The instance, with numbers cast to the type of their field.

  Raises:
    UnknownName: for a key that is no field, with the nearest one.
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}  # pyrefly: ignore[bad-argument-type]
  clean = {}
  for name, value in values.items():
    if name not in fields:
      raise UnknownName(
        f"{cls.__name__} has no hyper-parameter '{name}'. "
        f'{checks.suggest(name, fields)}'
      )
    if value is None:
      continue
    value = _hashable(value)
    if fields[name].type in _FLOATS and isinstance(value, int):
      value = float(value)
    clean[name] = value
  return cls(**clean)


def _hashable(value: Any) -> Any:
  """The value with tuples in place of lists, at any depth."""
  if isinstance(value, list | tuple):
    return tuple(map(_hashable, value))
  return value


def list_methods(registry: Mapping[str, Entry], **wanted: Any) -> list[str]:
  """Names of the entries whose `info` has the wanted field values."""
  return [
    name
    for name, entry in registry.items()
    if all(getattr(entry.info, k) == v for k, v in wanted.items())
  ]
