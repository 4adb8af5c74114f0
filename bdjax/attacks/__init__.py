"""Attacks: one file each, all on the contract of `types.Attack`.

An attack of your own needs no file: `from_trigger` takes any function of one
image.
"""

from collections.abc import Callable
from typing import Any

from bdjax import registry
from bdjax.attacks.badnets import BadNetsHParams as BadNetsHParams
from bdjax.attacks.badnets import badnets as badnets
from bdjax.attacks.blended import BlendedHParams as BlendedHParams
from bdjax.attacks.blended import blended as blended
from bdjax.attacks.ftrojan import FTrojanHParams as FTrojanHParams
from bdjax.attacks.ftrojan import ftrojan as ftrojan
from bdjax.attacks.poisoning import PoisonHParams as PoisonHParams
from bdjax.attacks.poisoning import from_hparams as from_hparams
from bdjax.attacks.poisoning import from_trigger as from_trigger
from bdjax.attacks.relabel import Relabel as Relabel
from bdjax.attacks.relabel import all2all as all2all
from bdjax.attacks.relabel import all2one as all2one
from bdjax.attacks.selection import Selection as Selection


def _static(
  make: Callable[..., Any],
  hparams: type,
  paper: str,
  *tags: str,
  vmappable: tuple[str, ...] = ('seeds', 'float_hparams', 'samples'),
  **facts: Any,
) -> registry.Entry:
  """An entry of an attack that puts one trigger on relabelled images."""
  info = registry.MethodInfo(
    kind='attack',
    stage='pre_training',
    category='data_poisoning',
    access='data_only',
    needs=('clean_labelled',),
    outputs='trigger',
    vmappable=vmappable,
    tags=(
      *tags,
      'non_semantic',
      'manual',
      'digital',
      'random_selection',
      'agnostic',
      'static',
      'label_inconsistent',
    ),
    paper=paper,
    **facts,
  )
  return registry.Entry(make, hparams, info)


REGISTRY: dict[str, registry.Entry] = {
  'badnets': _static(
    badnets,
    BadNetsHParams,
    'BadNets: Evaluating Backdooring Attacks on Deep Neural Networks',
    'visible',
    vmappable=('seeds', 'samples'),
    subcategory='visible_static_patch',
    venue='IEEE Access',
    year=2019,
    reference_repo='Kooscii/BadNets',
  ),
  'blended': _static(
    blended,
    BlendedHParams,
    'Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning',
    'invisible',
    'additive',
    subcategory='invisible_blended',
    venue='arXiv',
    year=2017,
  ),
  'ftrojan': _static(
    ftrojan,
    FTrojanHParams,
    'An Invisible Black-Box Backdoor Attack Through Frequency Domain',
    'invisible',
    'additive',
    subcategory='invisible_frequency',
    venue='ECCV',
    year=2022,
    reference_repo='SoftWiser-group/FTrojan',
  ),
}
