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
from bdjax.attacks.blind import BlindHParams as BlindHParams
from bdjax.attacks.blind import blind as blind
from bdjax.attacks.bpp import BppHParams as BppHParams
from bdjax.attacks.bpp import bpp as bpp
from bdjax.attacks.crafter import Crafter as Crafter
from bdjax.attacks.crafter import MissingAsset as MissingAsset
from bdjax.attacks.ctrl import CtrlHParams as CtrlHParams
from bdjax.attacks.ctrl import ctrl as ctrl
from bdjax.attacks.ftrojan import FTrojanHParams as FTrojanHParams
from bdjax.attacks.ftrojan import ftrojan as ftrojan
from bdjax.attacks.input_aware import InputAwareHParams as InputAwareHParams
from bdjax.attacks.input_aware import input_aware as input_aware
from bdjax.attacks.lc import CRAFTER as _LC
from bdjax.attacks.lc import LcHParams as LcHParams
from bdjax.attacks.lc import lc as lc
from bdjax.attacks.lf import CRAFTER as _LF
from bdjax.attacks.lf import LfHParams as LfHParams
from bdjax.attacks.lf import lf as lf
from bdjax.attacks.lira import LiraHParams as LiraHParams
from bdjax.attacks.lira import lira as lira
from bdjax.attacks.mixing import AugmentHParams as AugmentHParams
from bdjax.attacks.mixing import MixHParams as MixHParams
from bdjax.attacks.mixing import SlotHParams as SlotHParams
from bdjax.attacks.packs import Pack as Pack
from bdjax.attacks.packs import pack as pack
from bdjax.attacks.pairing import PairHParams as PairHParams
from bdjax.attacks.poison_ink import CRAFTER as _POISON_INK
from bdjax.attacks.poison_ink import PoisonInkHParams as PoisonInkHParams
from bdjax.attacks.poison_ink import poison_ink as poison_ink
from bdjax.attacks.poisoning import PoisonHParams as PoisonHParams
from bdjax.attacks.poisoning import from_hparams as from_hparams
from bdjax.attacks.poisoning import from_trigger as from_trigger
from bdjax.attacks.refool import RefoolHParams as RefoolHParams
from bdjax.attacks.refool import refool as refool
from bdjax.attacks.relabel import Relabel as Relabel
from bdjax.attacks.relabel import all2all as all2all
from bdjax.attacks.relabel import all2one as all2one
from bdjax.attacks.selection import Selection as Selection
from bdjax.attacks.sig import SigHParams as SigHParams
from bdjax.attacks.sig import sig as sig
from bdjax.attacks.ssba import CRAFTER as _SSBA
from bdjax.attacks.ssba import SsbaHParams as SsbaHParams
from bdjax.attacks.ssba import ssba as ssba
from bdjax.attacks.trojannn import CRAFTER as _TROJANNN
from bdjax.attacks.trojannn import TrojanNNHParams as TrojanNNHParams
from bdjax.attacks.trojannn import trojannn as trojannn
from bdjax.attacks.wanet import WaNetHParams as WaNetHParams
from bdjax.attacks.wanet import wanet as wanet


def _static(
  make: Callable[..., Any],
  hparams: type,
  paper: str,
  *tags: str,
  clean_label: bool = False,
  learnable: bool = False,
  specific: bool = False,
  vmappable: tuple[str, ...] = ('seeds', 'float_hparams', 'samples'),
  **facts: Any,
) -> registry.Entry:
  """An entry of an attack that puts one trigger on images of its choice.

  They are relabelled or, with `clean_label`, those of the target class.
  A `learnable` trigger is the outcome of an optimization, a `specific` one
  differs between images.
  """
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
      'learnable' if learnable else 'manual',
      'digital',
      'non_random_selection' if clean_label else 'random_selection',
      'specific' if specific else 'agnostic',
      'static',
      'label_consistent' if clean_label else 'label_inconsistent',
    ),
    paper=paper,
    **facts,
  )
  return registry.Entry(make, hparams, info)


def _in_loop(
  make: Callable[..., Any],
  hparams: type,
  paper: str,
  *tags: str,
  vmappable: tuple[str, ...] = ('seeds', 'samples'),
  **facts: Any,
) -> registry.Entry:
  """An entry of an attack that is carried out while the model is trained."""
  info = registry.MethodInfo(
    kind='attack',
    stage='training',
    category='training_controllable',
    access='training_control',
    needs=('clean_labelled',),
    outputs='model',
    vmappable=vmappable,
    tags=(
      *tags,
      'non_semantic',
      'digital',
      'random_selection',
      'label_inconsistent',
      'one_stage',
      'full_data_access',
      'full_process_control',
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
  'sig': _static(
    sig,
    SigHParams,
    'A New Backdoor Attack in CNNs by Training Set Corruption without Label '
    'Poisoning',
    'invisible',
    'additive',
    clean_label=True,
    subcategory='label_consistent',
    venue='ICIP',
    year=2019,
  ),
  'ctrl': _static(
    ctrl,
    CtrlHParams,
    'An Embarrassingly Simple Backdoor Attack on Self-supervised Learning',
    'invisible',
    'additive',
    clean_label=True,
    subcategory='invisible_frequency',
    venue='ICCV',
    year=2023,
    reference_repo='meet-cjli/CTRL',
  ),
  'refool': _static(
    refool,
    RefoolHParams,
    'Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks',
    'visible',
    'non_additive',
    specific=True,
    subcategory='sample_specific',
    venue='ECCV',
    year=2020,
    reference_repo='DreamtaleCore/Refool',
  ),
  'lf': _static(
    lf,
    LfHParams,
    "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective",
    'invisible',
    'additive',
    learnable=True,
    vmappable=('seeds', 'samples'),
    subcategory='invisible_frequency',
    venue='ICCV',
    year=2021,
    reference_repo='YiZeng623/frequency-backdoor',
  ),
  'trojannn': _static(
    trojannn,
    TrojanNNHParams,
    'Trojaning Attack on Neural Networks',
    'visible',
    learnable=True,
    vmappable=('seeds', 'samples'),
    subcategory='model_based_trigger',
    venue='NDSS',
    year=2018,
    reference_repo='PurduePAML/TrojanNN',
  ),
  'lc': _static(
    lc,
    LcHParams,
    'Label-Consistent Backdoor Attacks',
    'visible',
    'additive',
    clean_label=True,
    subcategory='label_consistent',
    venue='arXiv',
    year=2019,
    reference_repo='MadryLab/label-consistent-backdoor-code',
  ),
  'ssba': _static(
    ssba,
    SsbaHParams,
    'Invisible Backdoor Attack with Sample-Specific Triggers',
    'invisible',
    'additive',
    learnable=True,
    specific=True,
    vmappable=('seeds', 'samples'),
    subcategory='sample_specific',
    venue='ICCV',
    year=2021,
    reference_repo='yuezunli/ISSBA',
  ),
  'poison_ink': _static(
    poison_ink,
    PoisonInkHParams,
    'Poison Ink: Robust and Invisible Backdoor Attack',
    'invisible',
    'additive',
    learnable=True,
    specific=True,
    vmappable=('seeds', 'samples'),
    subcategory='sample_specific',
    venue='IEEE Transactions on Image Processing',
    year=2022,
    reference_repo='ZJZAC/Poison-Ink',
  ),
  'wanet': _in_loop(
    wanet,
    WaNetHParams,
    'WaNet - Imperceptible Warping-based Backdoor Attack',
    'invisible',
    'non_additive',
    'manual',
    'agnostic',
    'static',
    vmappable=('seeds', 'float_hparams', 'samples'),
    subcategory='invisible_warp',
    venue='ICLR',
    year=2021,
    reference_repo='VinAIResearch/Warping-based_Backdoor_Attack-release',
  ),
  'bpp': _in_loop(
    bpp,
    BppHParams,
    'BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural '
    'Networks via Image Quantization and Contrastive Adversarial Learning',
    'invisible',
    'non_additive',
    'manual',
    'agnostic',
    'static',
    subcategory='invisible_color_depth',
    venue='CVPR',
    year=2022,
    reference_repo='RU-System-Software-and-Security/BppAttack',
  ),
  'input_aware': _in_loop(
    input_aware,
    InputAwareHParams,
    'Input-Aware Dynamic Backdoor Attack',
    'visible',
    'non_additive',
    'learnable',
    'specific',
    'dynamic',
    vmappable=('seeds', 'float_hparams', 'samples'),
    subcategory='sample_specific',
    venue='NeurIPS',
    year=2020,
    reference_repo='VinAIResearch/input-aware-backdoor-attack-release',
  ),
  'blind': _in_loop(
    blind,
    BlindHParams,
    'Blind Backdoors in Deep Learning Models',
    'visible',
    'manual',
    'agnostic',
    'static',
    vmappable=('seeds', 'float_hparams', 'samples'),
    subcategory='blind_loss',
    venue='USENIX Security',
    year=2021,
    reference_repo='ebagdasa/backdoors101',
  ),
  'lira': _in_loop(
    lira,
    LiraHParams,
    'LIRA: Learnable, Imperceptible and Robust Backdoor Attacks',
    'invisible',
    'additive',
    'learnable',
    'specific',
    'dynamic',
    vmappable=('seeds', 'float_hparams', 'samples'),
    subcategory='sample_specific',
    venue='ICCV',
    year=2021,
    reference_repo='sunbelbd/invisible_backdoor_attacks',
  ),
}

# How the assets of attacks that cannot do without are made.
CRAFTERS: dict[str, Crafter] = {
  'lf': _LF,
  'trojannn': _TROJANNN,
  'lc': _LC,
  'ssba': _SSBA,
  'poison_ink': _POISON_INK,
}
