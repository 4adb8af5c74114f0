"""TrojanNN (Liu et al., NDSS 2018): a neuron-exciting apple, 10 % poisoning.

Paper:    BackdoorBench's settings; published there on CIFAR-10: C-Acc 0.9342,
          ASR 1.0, R-Acc 0.0 (its marks are added and wrap, ours are stamped)
Command:  python -m launch.attack --config=configs/attacks/trojannn.py
Expected: full setting not yet measured here; width 16, seed 0: digits16 C-Acc
          0.9917, ASR 1.0
Quick:    --config=configs/attacks/trojannn.py:quick (toy world, seconds)

The mark is crafted with a clean model, which is trained first unless the
workdir has it; --config.assets.mark=FILE takes a finished one.
"""

from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.attack(
    arg, 'trojannn', clean_model=True, mark='', mask_image=''
  )
