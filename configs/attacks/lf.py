"""LF (Zeng et al., ICCV 2021): a smooth universal pattern, 10 % poisoning.

Paper:    BackdoorBench's settings; published there on CIFAR-10: C-Acc 0.9319,
          ASR 0.9928, R-Acc 0.0071
Command:  python -m launch.attack --config=configs/attacks/lf.py
Expected: full setting not yet measured here; width 16, seed 0: digits16 C-Acc
          0.9944, ASR 1.0
Quick:    --config=configs/attacks/lf.py:quick (toy world, seconds)

The pattern is crafted with a clean model, which is trained first unless the
workdir has it; --config.assets.pattern=FILE.npy takes a finished one.
"""

from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.attack(arg, 'lf', clean_model=True, pattern='')
