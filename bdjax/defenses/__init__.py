"""Defenses: one file each, all on the contract of `types.Defense`."""

from bdjax import registry
from bdjax.defenses.ft import FtHParams as FtHParams
from bdjax.defenses.ft import ft as ft
from bdjax.defenses.ft_sam import FtSamHParams as FtSamHParams
from bdjax.defenses.ft_sam import ft_sam as ft_sam

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
}
