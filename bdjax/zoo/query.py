"""Finding artefacts, and making sure they belong in one stack."""

import fnmatch
import os
import pathlib
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from bdjax import tree
from bdjax.zoo import artefacts, cards, digest

_T = TypeVar('_T')

_SHORTEST_PREFIX = 4
_LISTED = 20  # artefacts an error message shows


def find(
  root: str | os.PathLike, pattern: str | Sequence[str], **wanted: Any
) -> list[artefacts.Artefact]:
  """Finds complete artefacts.

  Args:
    root: the store.
    pattern: folders below the root with wildcards, such as
      'attacked/cifar10/preactresnet18/*'; a folder above stands for all below
      it; a run_id or at least 4 digits of its beginning also names one.
      Several patterns as a sequence or joined by commas.
    **wanted: values that fields of the card must have, such as
      method='badnets' or seed=0.

  Returns:
    Artefacts in the order of the patterns, sorted by folder within each, none
    twice.

  Raises:
    ValueError: if a pattern is empty, leaves the root, or is a beginning of
      several run_ids.
    FileNotFoundError: if a pattern matches nothing, listing what there is.
    CorruptArtefactError: if the card of a match is damaged.
  """
  if isinstance(pattern, str):
    pattern = pattern.split(',')
  known = artefacts.names(root)
  matches: dict[str, None] = {}
  for part in pattern:
    found = _match(part.strip(), known)
    if not found:
      raise FileNotFoundError(_nothing(root, part, known))
    matches.update(dict.fromkeys(found))
  found = [artefacts.read(_path(root, name)) for name in matches]
  kept = [a for a in found if _has(a.card, wanted)]
  if not kept:
    raise FileNotFoundError(
      f'None of the {len(found)} artefacts that match '
      f"'{','.join(pattern)}' has {_words(wanted)}: "
      f'{_list(found[:_LISTED])}.'
    )
  return kept


def check_alike(members: Sequence[cards.Card]) -> None:
  """Checks that models can share a stack.

  Args:
    members: cards of at least one model.

  Raises:
    ValueError: if there are none, or naming those whose architecture, number
      of classes or data set differs from the majority's.
  """
  if not members:
    raise ValueError('Cannot stack 0 checkpoints; give at least one.')
  kinds = [_stack_key(card) for card in members]
  usual = Counter(kinds).most_common(1)[0][0]
  odd = [
    f'{c.name} ({c.method}) is {k}'
    for c, k in zip(members, kinds, strict=True)
    if k != usual
  ]
  if odd:
    raise ValueError(
      f'Cannot stack {len(members)} checkpoints: '
      f'{len(members) - len(odd)} of them are {usual}, but '
      f'{"; ".join(odd)}. Narrow the pattern to models of one architecture, '
      'number of classes and data set.'
    )


def load_stack(
  members: Sequence[artefacts.Artefact], abstract: _T, name: str = 'model'
) -> _T:
  """Loads one tree of several artefacts as a stack.

  Args:
    members: artefacts from `find`, all alike.
    abstract: abstract tree of one member.
    name: which tree of `state/`.

  Returns:
    The tree with a leading axis m = len(members), in their order.

  Raises:
    ValueError: if the artefacts are unlike or do not fit the abstract tree.
    CorruptArtefactError: if a checkpoint is damaged.
  """
  check_alike([member.card for member in members])
  loaded = [artefacts.load_state(m, {name: abstract})[name] for m in members]
  return tree.stack(loaded, [member.name for member in members])


def _match(pattern: str, known: list[str]) -> list[str]:
  if not pattern:
    raise ValueError(
      "An empty pattern names nothing; write 'attacked/*' for all of a kind."
    )
  wanted = pathlib.PurePosixPath(pattern)
  if wanted.is_absolute() or '..' in wanted.parts:
    raise ValueError(
      f"'{pattern}' leaves the store; patterns are relative to its root, such "
      "as 'attacked/cifar10/preactresnet18/*'."
    )
  found = [name for name in known if _fits(name, wanted.parts)]
  return found or _by_prefix(pattern, known)


def _path(root: str | os.PathLike, name: str) -> pathlib.Path:
  return pathlib.Path(root).absolute() / name


def _fits(name: str, wanted: tuple[str, ...]) -> bool:
  parts = name.split('/')
  return len(wanted) <= len(parts) and all(
    fnmatch.fnmatchcase(part, want)
    for part, want in zip(parts, wanted, strict=False)
  )


def _by_prefix(pattern: str, known: list[str]) -> list[str]:
  is_hex = set(pattern) <= set(string.hexdigits.lower())
  if not is_hex or len(pattern) < _SHORTEST_PREFIX:
    return []
  found = [n for n in known if n.rsplit('/', 1)[1].startswith(pattern)]
  if len(found) > 1:
    raise ValueError(
      f"'{pattern}' is the beginning of {len(found)} run_ids: "
      f'{", ".join(found)}. Give more digits.'
    )
  return found


def _has(card: cards.Card, wanted: dict[str, Any]) -> bool:
  return all(
    digest.plain(getattr(card, name)) == digest.plain(value)
    for name, value in wanted.items()
  )


def _nothing(root: str | os.PathLike, pattern: str, known: list[str]) -> str:
  if not known:
    return (
      f"Nothing matches '{pattern}': there is no complete artefact in {root}. "
      'Train one first, or give another --workdir.'
    )
  there = _list([artefacts.read(_path(root, n)) for n in known[:_LISTED]])
  more = f' and {len(known) - _LISTED} more' if len(known) > _LISTED else ''
  return f"Nothing matches '{pattern}' in {root}. There is: {there}{more}."


def _list(found: Sequence[artefacts.Artefact]) -> str:
  return ', '.join(
    f'{a.name} ({a.card.method}, seed {a.card.seed})' for a in found
  )


def _words(wanted: dict[str, Any]) -> str:
  return ', '.join(f'`{k}={v!r}`' for k, v in wanted.items())


def _stack_key(card: cards.Card) -> str:
  options = ''.join(f', {k}={v}' for k, v in sorted(card.arch_options.items()))
  return f'{card.arch}{options}, {card.num_classes} classes, {card.dataset}'
