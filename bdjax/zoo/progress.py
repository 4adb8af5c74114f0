"""How far an unfinished run got: snapshots that survive a kill.

    <root>/.progress/<run_id>/<number>/{tree/, position.json}

A snapshot is written beside its name and renamed, so a kill at any moment
leaves the one before it; two are kept, so that a damaged newest one falls back
to its predecessor. The folder's leading dot hides it from every query.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import TypeVar

from bdjax.zoo import files, store

_T = TypeVar('_T')

_KEPT = 2
_FOLDER = '.progress'
_POSITION = 'position.json'


class Progress:
  """Where a training loop leaves its state and picks it up again.

  A loop asks `load_position()`: None means from scratch; otherwise it builds
  the abstract tree for that position, calls `load(abstract)` and goes on. It
  calls `save(position, tree)` now and then. Whoever holds the finished result
  calls `clear()`.

  Args:
    root: the store.
    run_id: the run these snapshots belong to.

  Example:
    >>> import tempfile
    >>> root = tempfile.mkdtemp()
    >>> Progress(root, '0123').save({'step': 3}, {'total': 6.0})
    >>> restarted = Progress(root, '0123')
    >>> restarted.load_position()
    {'step': 3}
    >>> restarted.load({'total': 0.0})
    {'total': 6.0}
  """

  def __init__(self, root: str | os.PathLike, run_id: str):
    self._folder = pathlib.Path(root).absolute() / _FOLDER / run_id
    self._root = pathlib.Path(root).absolute()
    self._chosen: pathlib.Path | None = None

  def save(self, position: Mapping[str, int], tree: object) -> None:
    """Makes a new newest snapshot and drops all but two.

    Args:
      position: where the loop stands, such as {'phase': 0, 'step': 1200}.
      tree: pytree of arrays from which it can go on: state, keys and the
        metrics so far.
    """
    files.make_folder(self._folder, self._root)
    snapshots = self._snapshots()
    number = int(snapshots[0].name) + 1 if snapshots else 0
    target = self._folder / f'{number:08d}'
    self._sweep()
    temporary = files.sibling(target)
    try:
      store.save_tree(temporary / 'tree', tree)
      values = {name: int(value) for name, value in position.items()}
      files.write_bytes(temporary / _POSITION, files.to_json(values))
      files.sync_tree(temporary)
      files.publish(temporary, target, force=True, is_complete=_is_complete)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise
    for old in self._snapshots()[_KEPT:]:
      _discard(old)
    self._chosen = None

  def load_position(self) -> dict[str, int] | None:
    """The position of the newest intact snapshot, None where there is none.

    All of the snapshot is read and checked, so that `load` after it can only
    fail for a tree that does not fit.
    """
    self._chosen = None
    for snapshot in self._snapshots():
      position = _intact_position(snapshot)
      if position is not None:
        self._chosen = snapshot
        return position
    return None

  def load(self, abstract: _T) -> _T:
    """The tree that belongs to `load_position()`.

    Args:
      abstract: abstract tree or concrete example of what was saved there.

    Returns:
      The tree.

    Raises:
      FileNotFoundError: if there is no intact snapshot.
      ValueError: if a leaf does not fit, with both shapes; the code or its
        settings changed since, call `clear` and start afresh.
    """
    if self._chosen is None:
      self.load_position()
    if self._chosen is None:
      raise FileNotFoundError(
        f'There is no intact snapshot in {self._folder}; start from scratch.'
      )
    return store.load_tree(self._chosen / 'tree', abstract)

  def clear(self) -> None:
    """Removes all snapshots of this run; none is an error."""
    for snapshot in reversed(self._snapshots()):
      _discard(snapshot)
    shutil.rmtree(self._folder, ignore_errors=True)
    self._chosen = None

  def _snapshots(self) -> list[pathlib.Path]:
    """Snapshots, newest first."""
    if not self._folder.is_dir():
      return []
    found = [p for p in self._folder.iterdir() if p.name.isdecimal()]
    return sorted(found, reverse=True)

  def _sweep(self) -> None:
    for leftover in self._folder.glob(f'{files.TEMPORARY}*'):
      name = leftover.name.removeprefix(files.TEMPORARY).split('-')[0]
      files.sweep_leftovers(self._folder / name)


def _is_complete(path: pathlib.Path) -> bool:
  return (path / _POSITION).is_file()


def _intact_position(path: pathlib.Path) -> dict[str, int] | None:
  try:
    store.verify_tree(path / 'tree')
    return json.loads((path / _POSITION).read_bytes())
  except (files.CorruptArtefactError, OSError, ValueError):
    return None


def _discard(path: pathlib.Path) -> None:
  """Deletes a folder so that no half of it ever keeps its name."""
  aside = files.sibling(path)
  try:
    os.rename(path, aside)
  except FileNotFoundError:
    return
  shutil.rmtree(aside, ignore_errors=True)
