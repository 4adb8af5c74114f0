"""Artefact folders: written once, whole, and never changed.

    <root>/<clean|attacked|defended|reactivated>/<dataset>/<arch>/<run_id>/
    <root>/measured/<stage>/<run_id>/
      state/<name>/        one checkpoint per named tree (models only)
      arrays/arrays.npz    named arrays
      card.json  config.json  metrics.json
      DONE                 SHA-256 of all of the above, written last

A folder without DONE does not exist for readers. Writers fill a temporary
sibling and rename it, so that a kill at any moment leaves all or nothing.
"""

import contextlib
import dataclasses
import glob
import io
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bdjax import checks
from bdjax.zoo import cards, digest, files, store

_DONE = 'DONE'
_ARRAYS = 'arrays/arrays.npz'


class Artefact(NamedTuple):
  """A complete artefact.

  Attributes:
    path: its folder.
    card: what it is.
    content: SHA-256 of each part, such as 'card.json' or 'state/model'.
  """

  path: pathlib.Path
  card: cards.Card
  content: dict[str, str]

  @property
  def name(self) -> str:
    """Folder below the root, such as 'attacked/cifar10/vgg19_bn/0123…'."""
    return self.card.name


def write(
  root: str | os.PathLike,
  card: cards.Card,
  *,
  state: Mapping[str, Any] | None = None,
  arrays: Mapping[str, Any] | None = None,
  config: Any,
  metrics: Any,
  force: bool = False,
) -> Artefact:
  """Writes an artefact, all or nothing.

  Args:
    root: the store.
    card: its identity; `card.state` is filled in from `state`.
    state: {name: tree}, such as {'model': ModelState, 'attack': AttackState};
      needed for every kind but 'measured', which must not have it.
    arrays: {name: array}, names may contain '/'.
    config: the resolved configuration, plain data.
    metrics: what was measured, plain data; non-finite numbers become null.
    force: replaces an artefact of this run_id that is already there.

  Returns:
    The artefact; the old one, untouched, if it was complete and not `force`.

  Raises:
    ValueError: if state and kind do not go together.
    TypeError: if something is not plain data or not an array.

  Example:
    >>> import tempfile
    >>> card = cards.Card(run_id='0123456789abcdef', stage='clean',
    ...                   method='sgd', dataset='toy', arch='tiny',
    ...                   num_classes=4, seed=0)
    >>> root = tempfile.mkdtemp()
    >>> state = {'model': {'w': np.ones(2, np.float32)}}
    >>> artefact = write(root, card, state=state, config={}, metrics={})
    >>> artefact.name, exists(root, card.run_id)
    ('clean/toy/tiny/0123456789abcdef', True)
    >>> load_state(artefact, state)['model']['w']
    array([1., 1.], dtype=float32)
  """
  root = pathlib.Path(root).absolute()
  _check_state(card, state)
  card = dataclasses.replace(card, state=tuple(state or ()))
  target = root / card.name
  files.sweep_leftovers(target)
  if is_complete(target) and not force:
    return read(target)
  files.make_folder(target.parent, root)
  temporary = files.sibling(target)
  try:
    temporary.mkdir()
    _fill(temporary, card, state or {}, arrays or {}, config, metrics)
    files.publish(temporary, target, force=force, is_complete=is_complete)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  return read(target)


def is_complete(path: pathlib.Path) -> bool:
  """Whether a folder is a finished artefact."""
  return (path / _DONE).is_file()


def names(root: str | os.PathLike) -> list[str]:
  """Folders of all complete artefacts below the root, sorted."""
  return _names(root, '*')


def _names(root: str | os.PathLike, run_id: str) -> list[str]:
  """Those whose run_id matches a pattern; one run costs no listing of all."""
  root = pathlib.Path(root)
  patterns = [f'{kind}/*/*/{run_id}/{_DONE}' for kind in cards.MODEL_KINDS]
  patterns.append(f'measured/*/{run_id}/{_DONE}')
  found = [
    done.parent.relative_to(root)
    for pattern in patterns
    for done in root.glob(pattern)
  ]
  return sorted(
    path.as_posix()
    for path in found
    if not any(part.startswith('.') for part in path.parts)
  )


def exists(root: str | os.PathLike, run_id: str) -> bool:
  """Whether there is a complete artefact of this run."""
  return bool(_names(root, glob.escape(run_id)))


def open(root: str | os.PathLike, run_id: str) -> Artefact:
  """Opens one artefact.

  Args:
    root: the store.
    run_id: its run_id or its folder below the root.

  Returns:
    The artefact; no array has been read yet.

  Raises:
    FileNotFoundError: if it is not there or not complete, listing what is.
    CorruptArtefactError: if its card is damaged.
  """
  last = glob.escape(run_id.rsplit('/', 1)[-1])
  matches = [n for n in _names(root, last) if f'/{n}'.endswith(f'/{run_id}')]
  if not matches:
    known = names(root)
    raise FileNotFoundError(
      f"There is no complete artefact '{run_id}' in {root}. "
      f'{checks.suggest(run_id, [n.rsplit("/", 1)[1] for n in known])}'
    )
  return read(pathlib.Path(root).absolute() / matches[0])


def read(path: pathlib.Path) -> Artefact:
  """Opens the artefact in a folder that is known to be complete.

  Raises:
    CorruptArtefactError: if its DONE or its card is damaged.
  """
  try:
    content = json.loads((path / _DONE).read_bytes())['sha256']
    expected = content['card.json']
  except (ValueError, KeyError, TypeError) as error:
    raise _corrupt(path, 'its DONE is damaged') from error
  text = _checked(path, 'card.json', expected)
  return Artefact(path, cards.from_json(text, f'{path}/card.json'), content)


def load_state(artefact: Artefact, abstract: Mapping[str, Any]) -> dict:
  """Reads trees of an artefact.

  Args:
    artefact: from `write`, `open` or `query.find`.
    abstract: {name: abstract tree} for the trees wanted, such as
      {'model': jax.eval_shape(classifier.init, key)}.

  Returns:
    {name: tree}.

  Raises:
    KeyError: if the artefact has no tree of that name.
    ValueError: if a leaf does not fit, with both shapes.
    CorruptArtefactError: if a checkpoint is damaged.
  """
  for name in abstract:
    if name not in artefact.card.state:
      raise KeyError(
        f"{artefact.path} has no state '{name}'. "
        f'{checks.suggest(name, artefact.card.state)}'
      )
  return {
    name: store.load_tree(artefact.path / 'state' / name, value)
    for name, value in abstract.items()
  }


def load_arrays(artefact: Artefact) -> dict[str, np.ndarray]:
  """Reads the arrays of an artefact; {} where there are none.

  Raises:
    CorruptArtefactError: if the file is damaged.
  """
  if _ARRAYS not in artefact.content:
    return {}
  content = _checked(artefact.path, _ARRAYS, artefact.content[_ARRAYS])
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    return {name: arrays[name] for name in arrays.files}


def load_config(artefact: Artefact) -> Any:
  """Reads the resolved configuration of an artefact."""
  return _load_json(artefact, 'config.json')


def load_metrics(artefact: Artefact) -> Any:
  """Reads the metrics of an artefact."""
  return _load_json(artefact, 'metrics.json')


def verify(artefact: Artefact) -> None:
  """Reads everything and holds it against the digests in DONE.

  Raises:
    CorruptArtefactError: naming the first part that changed.
  """
  for part, expected in artefact.content.items():
    if not part.startswith('state/'):
      _checked(artefact.path, part, expected)
    elif not (artefact.path / part).is_dir():
      raise _corrupt(artefact.path, f'`{part}` is missing')
    elif store.verify_tree(artefact.path / part) != expected:
      raise _corrupt(artefact.path, f'`{part}` is not what was written')


def _check_state(card: cards.Card, state: Mapping[str, Any] | None) -> None:
  if card.kind == 'measured' and state:
    raise ValueError(
      f'A measured artefact has no state, got {sorted(state)}; give `arrays`, '
      'or the kind of a model.'
    )
  if card.kind != 'measured' and not state:
    raise ValueError(
      f'`kind={card.kind!r}` holds a model, got no state; give '
      "state={'model': …}, or a stage that only measures."
    )


def _fill(
  folder: pathlib.Path,
  card: cards.Card,
  state: Mapping[str, Any],
  arrays: Mapping[str, Any],
  config: Any,
  metrics: Any,
) -> None:
  """Writes all parts, forces them to the disk, then DONE."""
  parts = {
    'card.json': cards.to_json(card).encode(),
    'config.json': files.to_json(digest.plain(config)),
    'metrics.json': files.to_json(digest.plain(metrics, 'null')),
  }
  if arrays:
    (folder / 'arrays').mkdir()
    parts[_ARRAYS] = files.to_npz(arrays)
  for name, part in parts.items():
    files.write_bytes(folder / name, part)
  content = {name: files.sha256(part) for name, part in parts.items()}
  for name, value in state.items():
    content[f'state/{name}'] = store.save_tree(folder / 'state' / name, value)
  files.sync_tree(folder)
  files.write_bytes(folder / _DONE, files.to_json({'sha256': content}))
  files.sync(folder)


def _checked(path: pathlib.Path, part: str, expected: str) -> bytes:
  """Content of one file, held against its digest."""
  content = None
  with contextlib.suppress(FileNotFoundError):
    content = (path / part).read_bytes()
  if content is None:
    raise _corrupt(path, f'`{part}` is missing')
  if files.sha256(content) != expected:
    raise _corrupt(path, f'`{part}` is not what was written')
  return content


def _load_json(artefact: Artefact, part: str) -> Any:
  expected = artefact.content[part]
  return json.loads(_checked(artefact.path, part, expected))


def _corrupt(path: pathlib.Path, reason: str) -> files.CorruptArtefactError:
  return files.CorruptArtefactError(
    f'The artefact {path} is damaged: {reason}; delete the folder or re-run '
    'what made it with --force.'
  )
