"""Cards: what an artefact is, where it comes from, what was measured on it."""

import dataclasses
import json
from typing import Any

from bdjax import checks
from bdjax.zoo import digest, files

MODEL_KINDS = ('clean', 'attacked', 'defended', 'reactivated')
KINDS = (*MODEL_KINDS, 'measured')
KIND_OF_STAGE = {
  'clean': 'clean',
  'attack': 'attacked',
  'defend': 'defended',
  'reactivate': 'reactivated',
  'existence': 'measured',
  'connect': 'measured',
  'detect': 'measured',
  'analyze': 'measured',
}
STAGES = tuple(KIND_OF_STAGE)

_REQUIRED = {
  'run_id': str,
  'stage': str,
  'kind': str,
  'method': str,
  'dataset': str,
  'arch': str,
  'num_classes': int,
  'seed': int,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
  """The identity and the facts of one artefact; plain data throughout.

  Whatever is given is brought to what JSON holds (`digest.plain`), so that a
  card equals what is read back from its file.

  Attributes:
    run_id: digest that names the artefact, `digest.run_id`.
    stage: one of `STAGES`.
    method: registry key of the attack, defense, … that made it; for a clean
      model the name of its recipe.
    dataset: registry key of the data set.
    arch: registry key of the architecture.
    num_classes: width of the logits.
    seed: root of all randomness.
    kind: folder it lives in, one of `KINDS`; '' = the one of its stage.
    method_version: raised when a method's numbers change on purpose.
    dataset_id: identity of the data as the run saw it.
    arch_options: options of the architecture, such as the width.
    parents: run_ids it starts from, in the order of their roles.
    config_digest: digest of the fully resolved settings.
    hparams: the fully resolved settings themselves.
    attack: the backdoor inside, inherited by children: `attack`, `label_mode`,
      `target_label`, `poison_ratio`, …; {} for clean models.
    data: facts of the data: `num_train`, `num_test`, `reserved` (indices the
      defender got), `reserved_from` ('train' or 'test'), ….
    versions: `environment.versions()` of the run.
    metrics: summary of what was measured; non-finite numbers become null.
    state: names of the trees in `state/`, such as 'model' and 'attack'.
    time_utc: when it was finished, ISO 8601.
    extra: fields of a newer card that this version does not know; kept.
  """

  run_id: str
  stage: str
  method: str
  dataset: str
  arch: str
  num_classes: int
  seed: int
  kind: str = ''
  method_version: int = 1
  dataset_id: str = ''
  arch_options: dict[str, Any] = dataclasses.field(default_factory=dict)
  parents: tuple[str, ...] = ()
  config_digest: str = ''
  hparams: dict[str, Any] = dataclasses.field(default_factory=dict)
  attack: dict[str, Any] = dataclasses.field(default_factory=dict)
  data: dict[str, Any] = dataclasses.field(default_factory=dict)
  versions: dict[str, Any] = dataclasses.field(default_factory=dict)
  metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
  state: tuple[str, ...] = ()
  time_utc: str = ''
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    checks.one_of(STAGES, stage=self.stage)
    values = {
      'kind': self.kind or KIND_OF_STAGE[self.stage],
      'parents': tuple(self.parents),
      'state': tuple(self.state),
      'metrics': digest.plain(self.metrics, 'null'),
    }
    for name in ('arch_options', 'hparams', 'attack', 'data', 'versions'):
      values[name] = digest.plain(getattr(self, name))
    for name, value in values.items():
      object.__setattr__(self, name, value)
    checks.one_of(KINDS, kind=self.kind)
    for name in ('run_id', 'dataset', 'arch'):
      _check_folder_name(name, getattr(self, name))

  @property
  def name(self) -> str:
    """Its folder below the store's root, with '/' on every system."""
    if self.kind == 'measured':
      return f'measured/{self.stage}/{self.run_id}'
    return f'{self.kind}/{self.dataset}/{self.arch}/{self.run_id}'


def to_json(card: Card) -> str:
  """A card as the text of its file; unknown fields go back to the top."""
  values = {f.name: getattr(card, f.name) for f in dataclasses.fields(card)}
  extra = values.pop('extra')
  return files.to_json(digest.plain({**values, **extra})).decode()


def from_json(text: str | bytes, source: str = 'card.json') -> Card:
  """Reads a card.

  Args:
    text: content of the file.
    source: name of the file for error messages.

  Returns:
    The card; fields of a newer version are kept in `extra`.

  Raises:
    CorruptArtefactError: if the text is no JSON object.
    ValueError: if a required field is missing or of the wrong type, naming
      file and field.

  Example:
    >>> card = Card(run_id='0123456789abcdef', stage='attack',
    ...             method='badnets', dataset='toy', arch='tiny',
    ...             num_classes=4, seed=0)
    >>> from_json(to_json(card)) == card
    True
  """
  try:
    values = json.loads(text)
  except ValueError as error:
    raise files.CorruptArtefactError(
      f'{source} is not JSON ({error}); re-run what made it with --force.'
    ) from error
  if not isinstance(values, dict):
    raise files.CorruptArtefactError(
      f'{source} holds a {type(values).__name__} instead of an object; re-run '
      'what made it with --force.'
    )
  for name, kind in _REQUIRED.items():
    _check_field(source, values, name, kind)
  known = {f.name for f in dataclasses.fields(Card)} - {'extra'}
  extra = {k: v for k, v in values.items() if k not in known}
  fields = {k: v for k, v in values.items() if k in known}
  try:
    return Card(**fields, extra=extra)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{source} does not fit: {error}') from error


def _check_field(
  source: str, values: dict[str, Any], name: str, kind: type
) -> None:
  if name not in values:
    raise ValueError(
      f'{source} has no field `{name}`; a card needs '
      f'{", ".join(_REQUIRED)}. Re-run what made it with --force.'
    )
  value = values[name]
  if not isinstance(value, kind) or isinstance(value, bool):
    raise ValueError(
      f'{source}: `{name}={value!r}` is a {type(value).__name__}; it must be a '
      f'{kind.__name__}.'
    )


def _check_folder_name(name: str, value: str) -> None:
  if not value or value.startswith('.') or set(value) & set('/\\*?[]'):
    raise ValueError(
      f'`{name}={value!r}` becomes the name of a folder: not empty, no leading '
      'dot, none of / \\ * ? [ ].'
    )
