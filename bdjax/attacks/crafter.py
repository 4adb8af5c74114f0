"""Crafters: how the assets of an attack are made, before the attack is.

An asset is an array that a factory takes: a pattern, a mark, perturbed images.
What it is made from, a clean model or images alone, is no business of the
factory; whoever has it calls the crafter and hands its result on.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from bdjax.attacks import pictures

Craft = Callable[..., dict[str, np.ndarray]]


class Crafter(NamedTuple):
  """How one attack's assets are made.

  Attributes:
    craft: (key, classifier, model, images, labels, hp, assets) -> {name:
      array}, with the uint8 training set [N, h, w, c], its labels [N] and the
      assets that are there already. Runs on the host, may take minutes.
    makes: names of what it returns; an asset that is given is not made.
    reads: hyper-parameters it depends on; all others change nothing.
    needs: 'clean_model' or 'images'; with 'images', classifier and model are
      None.
    is_wanted: hp -> whether the attack takes these assets at all.
    version: raised when what it makes changes on purpose.
  """

  craft: Craft
  makes: tuple[str, ...]
  reads: tuple[str, ...]
  needs: Literal['clean_model', 'images'] = 'clean_model'
  is_wanted: Callable[[Any], bool] = lambda hp: True
  version: int = 1


class MissingAsset(ValueError):
  """An attack was made without an asset that it cannot do without."""


def required(
  assets: Mapping[str, Any] | None,
  attack: str,
  name: str,
  known: tuple[str, ...],
  otherwise: str = '',
) -> np.ndarray:
  """The asset of a name, which must be there.

  Args:
    assets: what the caller handed to the factory.
    attack: registry key, for the message.
    name: which asset.
    known: all names the attack has use for.
    otherwise: a way without it, a whole clause; '' for none.

  Returns:
    The asset.

  Raises:
    MissingAsset: if it is not there, with the call that makes it.
    UnknownName: if there is an asset the attack has no use for.
  """
  own = pictures.from_assets(assets, name, known)
  if own is None:
    raise MissingAsset(
      f"'{attack}' needs the asset '{name}', which is crafted beforehand: "
      f"pass assets=attacks.CRAFTERS['{attack}'].craft(key, classifier, model, "
      'images, labels, hp) with a clean model, or run launch.attack, which '
      f'does so{f"; {otherwise}" if otherwise else ""}.'
    )
  return np.asarray(own)
