"""Attacks: one file each, all on the contract of `types.Attack`.

An attack of your own needs no file: `from_trigger` takes any function of one
image.
"""

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

REGISTRY: dict[str, registry.Entry] = {
  'badnets': registry.Entry(
    badnets,
    BadNetsHParams,
    registry.MethodInfo(
      kind='attack',
      stage='pre_training',
      category='data_poisoning',
      subcategory='visible_static_patch',
      access='data_only',
      needs=('clean_labelled',),
      outputs='trigger',
      vmappable=('seeds', 'samples'),
      tags=(
        'visible',
        'non_semantic',
        'manual',
        'digital',
        'random_selection',
        'agnostic',
        'static',
        'label_inconsistent',
      ),
      paper=('BadNets: Evaluating Backdooring Attacks on Deep Neural Networks'),
      venue='IEEE Access',
      year=2019,
      reference_repo='Kooscii/BadNets',
    ),
  ),
  'blended': registry.Entry(
    blended,
    BlendedHParams,
    registry.MethodInfo(
      kind='attack',
      stage='pre_training',
      category='data_poisoning',
      subcategory='invisible_blended',
      access='data_only',
      needs=('clean_labelled',),
      outputs='trigger',
      vmappable=('seeds', 'float_hparams', 'samples'),
      tags=(
        'invisible',
        'non_semantic',
        'manual',
        'digital',
        'random_selection',
        'additive',
        'agnostic',
        'static',
        'label_inconsistent',
      ),
      paper=(
        'Targeted Backdoor Attacks on Deep Learning Systems Using Data '
        'Poisoning'
      ),
      venue='arXiv',
      year=2017,
    ),
  ),
  'ftrojan': registry.Entry(
    ftrojan,
    FTrojanHParams,
    registry.MethodInfo(
      kind='attack',
      stage='pre_training',
      category='data_poisoning',
      subcategory='invisible_frequency',
      access='data_only',
      needs=('clean_labelled',),
      outputs='trigger',
      vmappable=('seeds', 'float_hparams', 'samples'),
      tags=(
        'invisible',
        'non_semantic',
        'manual',
        'digital',
        'random_selection',
        'additive',
        'agnostic',
        'static',
        'label_inconsistent',
      ),
      paper=('An Invisible Black-Box Backdoor Attack Through Frequency Domain'),
      venue='ECCV',
      year=2022,
      reference_repo='SoftWiser-group/FTrojan',
    ),
  ),
}
