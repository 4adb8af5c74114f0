"""Defenses: one file each, all on the contract of `types.Defense`."""

from bdjax import registry
from bdjax.defenses.anp import AnpHParams as AnpHParams
from bdjax.defenses.anp import anp as anp
from bdjax.defenses.bnp import BnpHParams as BnpHParams
from bdjax.defenses.bnp import bnp as bnp
from bdjax.defenses.clp import ClpHParams as ClpHParams
from bdjax.defenses.clp import clp as clp
from bdjax.defenses.ep import EpHParams as EpHParams
from bdjax.defenses.ep import ep as ep
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
from bdjax.defenses.npd import NpdHParams as NpdHParams
from bdjax.defenses.npd import npd as npd
from bdjax.defenses.rnp import RnpHParams as RnpHParams
from bdjax.defenses.rnp import rnp as rnp
from bdjax.defenses.sau import SauHParams as SauHParams
from bdjax.defenses.sau import sau as sau

REGISTRY: dict[str, registry.Entry] = {
  'ft': registry.Entry(
    ft,
    FtHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper='BackdoorBench: a Comprehensive Benchmark of Backdoor Learning',
      venue='NeurIPS Datasets and Benchmarks',
      year=2022,
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'ft_sam': registry.Entry(
    ft_sam,
    FtSamHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware '
        'Minimization'
      ),
      venue='ICCV',
      year=2023,
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'npd': registry.Entry(
    npd,
    NpdHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Neural Polarizer: A Lightweight and Effective Backdoor Defense via '
        'Purifying Poisoned Features'
      ),
      venue='NeurIPS',
      year=2023,
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'sau': registry.Entry(
    sau,
    SauHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Shared Adversarial Unlearning: Backdoor Mitigation by Unlearning '
        'Shared Adversarial Examples'
      ),
      venue='NeurIPS',
      year=2023,
      reference_repo='shawkui/Shared_Adversarial_Unlearning',
    ),
  ),
  'nad': registry.Entry(
    nad,
    NadHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Neural Attention Distillation: Erasing Backdoor Triggers from Deep '
        'Neural Networks'
      ),
      venue='ICLR',
      year=2021,
      reference_repo='bboylyg/NAD',
    ),
  ),
  'fp': registry.Entry(
    fp,
    FpHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Fine-Pruning: Defending Against Backdooring Attacks on Deep '
        'Neural Networks'
      ),
      venue='RAID',
      year=2018,
      vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'nc': registry.Entry(
    nc,
    NcHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      vmappable=('checkpoints', 'seeds', 'classes', 'float_hparams'),
      paper=(
        'Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural '
        'Networks'
      ),
      venue='IEEE S&P',
      year=2019,
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'anp': registry.Entry(
    anp,
    AnpHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper='Adversarial Neuron Pruning Purifies Backdoored Deep Models',
      venue='NeurIPS',
      year=2021,
      vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
      reference_repo='csdongxian/ANP_backdoor',
    ),
  ),
  'i_bau': registry.Entry(
    i_bau,
    IBauHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper='Adversarial Unlearning of Backdoors via Implicit Hypergradient',
      venue='ICLR',
      year=2022,
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'clp': registry.Entry(
    clp,
    ClpHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      outputs='model',
      paper='Data-free Backdoor Removal Based on Channel Lipschitzness',
      venue='ECCV',
      year=2022,
      vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
      reference_repo='rkteddy/channel-Lipschitzness-based-pruning',
    ),
  ),
  'ep': registry.Entry(
    ep,
    EpHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      needs=('poisoned_train_set',),
      outputs='model',
      paper='Pre-activation Distributions Expose Backdoor Neurons',
      venue='NeurIPS',
      year=2022,
      vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'bnp': registry.Entry(
    bnp,
    BnpHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper='Pre-activation Distributions Expose Backdoor Neurons',
      venue='NeurIPS',
      year=2022,
      vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
  'rnp': registry.Entry(
    rnp,
    RnpHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='structure_modification',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper='Reconstructive Neuron Pruning for Backdoor Defense',
      venue='ICML',
      year=2023,
      vmappable=('checkpoints', 'seeds', 'thresholds', 'float_hparams'),
      reference_repo='bboylyg/RNP',
    ),
  ),
  'fst': registry.Entry(
    fst,
    FstHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Towards Stable Backdoor Purification through Feature Shift Tuning'
      ),
      venue='NeurIPS',
      year=2023,
      reference_repo='AISafety-HKUST/stable_backdoor_purification',
    ),
  ),
  'mcr': registry.Entry(
    mcr,
    McrHParams,
    registry.MethodInfo(
      kind='defense',
      stage='post_training',
      category='mitigation',
      subcategory='tuning',
      access='white_box',
      needs=('clean_labelled',),
      outputs='model',
      paper=(
        'Bridging Mode Connectivity in Loss Landscapes and Adversarial '
        'Robustness'
      ),
      venue='ICLR',
      year=2020,
      reference_repo='SCLBD/BackdoorBench',
    ),
  ),
}
