"""Defenses: one file each, all on the contract of `types.Defense`."""

import functools
from typing import Any

from bdjax import registry
from bdjax.defenses.anp import AnpHParams as AnpHParams
from bdjax.defenses.anp import anp as anp
from bdjax.defenses.bnp import BnpHParams as BnpHParams
from bdjax.defenses.bnp import bnp as bnp
from bdjax.defenses.bti_dbf import BtiDbfHParams as BtiDbfHParams
from bdjax.defenses.bti_dbf import bti_dbf as bti_dbf
from bdjax.defenses.clp import ClpHParams as ClpHParams
from bdjax.defenses.clp import clp as clp
from bdjax.defenses.ep import EpHParams as EpHParams
from bdjax.defenses.ep import ep as ep
from bdjax.defenses.exact_purification import (
  ExactPurificationHParams as ExactPurificationHParams,
)
from bdjax.defenses.exact_purification import (
  exact_purification as exact_purification,
)
from bdjax.defenses.fp import FpHParams as FpHParams
from bdjax.defenses.fp import fp as fp
from bdjax.defenses.fst import FstHParams as FstHParams
from bdjax.defenses.fst import fst as fst
from bdjax.defenses.ft import FtHParams as FtHParams
from bdjax.defenses.ft import ft as ft
from bdjax.defenses.ft_sam import FtSamHParams as FtSamHParams
from bdjax.defenses.ft_sam import ft_sam as ft_sam
from bdjax.defenses.i_bau import IBauHParams as IBauHParams
from bdjax.defenses.i_bau import i_bau as i_bau
from bdjax.defenses.mcr import McrHParams as McrHParams
from bdjax.defenses.mcr import mcr as mcr
from bdjax.defenses.nad import NadHParams as NadHParams
from bdjax.defenses.nad import nad as nad
from bdjax.defenses.nc import NcHParams as NcHParams
from bdjax.defenses.nc import nc as nc
from bdjax.defenses.nc import nc_detector as nc_detector
from bdjax.defenses.npd import NpdHParams as NpdHParams
from bdjax.defenses.npd import npd as npd
from bdjax.defenses.pam import PamHParams as PamHParams
from bdjax.defenses.pam import pam as pam
from bdjax.defenses.rnp import RnpHParams as RnpHParams
from bdjax.defenses.rnp import rnp as rnp
from bdjax.defenses.sau import SauHParams as SauHParams
from bdjax.defenses.sau import sau as sau


def _mitigation(
  make: registry.Make,
  hparams: type,
  paper: str,
  *,
  subcategory: str = 'tuning',
  needs: tuple[str, ...] = ('clean_labelled',),
  reference_repo: str = 'SCLBD/BackdoorBench',
  **facts: Any,
) -> registry.Entry:
  """An entry of a method that purifies a trained model it fully holds."""
  info = registry.MethodInfo(
    kind='defense',
    stage='post_training',
    category='mitigation',
    subcategory=subcategory,
    access='white_box',
    needs=needs,
    outputs='model',
    paper=paper,
    reference_repo=reference_repo,
    **facts,
  )
  return registry.Entry(make, hparams, info)


_pruning = functools.partial(
  _mitigation,
  subcategory='structure_modification',
  vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
)

REGISTRY: dict[str, registry.Entry] = {
  'ft': _mitigation(
    ft,
    FtHParams,
    'BackdoorBench: a Comprehensive Benchmark of Backdoor Learning',
    venue='NeurIPS Datasets and Benchmarks',
    year=2022,
  ),
  'ft_sam': _mitigation(
    ft_sam,
    FtSamHParams,
    'Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware '
    'Minimization',
    venue='ICCV',
    year=2023,
  ),
  'npd': _mitigation(
    npd,
    NpdHParams,
    'Neural Polarizer: A Lightweight and Effective Backdoor Defense via '
    'Purifying Poisoned Features',
    venue='NeurIPS',
    year=2023,
    subcategory='structure_modification',
  ),
  'sau': _mitigation(
    sau,
    SauHParams,
    'Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning '
    'Shared Adversarial Examples',
    venue='NeurIPS',
    year=2023,
    reference_repo='shawkui/Shared_Adversarial_Unlearning',
  ),
  'nad': _mitigation(
    nad,
    NadHParams,
    'Neural Attention Distillation: Erasing Backdoor Triggers from Deep '
    'Neural Networks',
    venue='ICLR',
    year=2021,
    reference_repo='bboylyg/NAD',
  ),
  'fp': _pruning(
    fp,
    FpHParams,
    'Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural '
    'Networks',
    venue='RAID',
    year=2018,
  ),
  'nc': _mitigation(
    nc,
    NcHParams,
    'Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural '
    'Networks',
    venue='IEEE S&P',
    year=2019,
    vmappable=('checkpoints', 'seeds', 'classes', 'float_hparams'),
  ),
  'anp': _pruning(
    anp,
    AnpHParams,
    'Adversarial Neuron Pruning Purifies Backdoored Deep Models',
    venue='NeurIPS',
    year=2021,
    reference_repo='csdongxian/ANP_backdoor',
  ),
  'i_bau': _mitigation(
    i_bau,
    IBauHParams,
    'Adversarial Unlearning of Backdoors via Implicit Hypergradient',
    venue='ICLR',
    year=2022,
  ),
  'clp': _pruning(
    clp,
    ClpHParams,
    'Data-free Backdoor Removal Based on Channel Lipschitzness',
    venue='ECCV',
    year=2022,
    needs=(),
    reference_repo='rkteddy/channel-Lipschitzness-based-pruning',
  ),
  'ep': _pruning(
    ep,
    EpHParams,
    'Pre-activation Distributions Expose Backdoor Neurons',
    venue='NeurIPS',
    year=2022,
    needs=('poisoned_train_set',),
  ),
  'bnp': _pruning(
    bnp,
    BnpHParams,
    'Pre-activation Distributions Expose Backdoor Neurons',
    venue='NeurIPS',
    year=2022,
  ),
  'rnp': _pruning(
    rnp,
    RnpHParams,
    'Reconstructive Neuron Pruning for Backdoor Defense',
    venue='ICML',
    year=2023,
    reference_repo='bboylyg/RNP',
  ),
  'fst': _mitigation(
    fst,
    FstHParams,
    'Towards Stable Backdoor Purification through Feature Shift Tuning',
    venue='NeurIPS',
    year=2023,
    reference_repo='AISafety-HKUST/stable_backdoor_purification',
  ),
  'mcr': _mitigation(
    mcr,
    McrHParams,
    'Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness',
    venue='ICLR',
    year=2020,
  ),
  'bti_dbf': _mitigation(
    bti_dbf,
    BtiDbfHParams,
    'Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling '
    'Benign Features',
    venue='ICLR',
    year=2024,
    reference_repo='AISafety-HKUST/stable_backdoor_purification',
  ),
  'pam': _mitigation(
    pam,
    PamHParams,
    'Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor '
    'Defense',
    venue='NeurIPS',
    year=2024,
    reference_repo='AISafety-HKUST/Backdoor_Safety_Tuning',
  ),
  'exact_purification': _mitigation(
    exact_purification,
    ExactPurificationHParams,
    'Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor '
    'Defense',
    venue='NeurIPS',
    year=2024,
    needs=('clean_labelled', 'trigger_known'),
    reference_repo='',
  ),
}
