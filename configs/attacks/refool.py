"""ReFool (Liu et al., ECCV 2020): a reflection of another picture, 10 %.

Paper:    BackdoorBench's settings, for which it gives no figures
Command:  python -m launch.attack --config=configs/attacks/refool.py
Expected: full setting not yet measured here; digits16, width 16, seed 0: C-Acc
          0.9944, ASR 0.9969; digits32 not yet measured
Quick:    --config=configs/attacks/refool.py:quick (toy world, seconds)
Own pool: --config.assets.reflections=POOL.npy, uint8 [n, H, W, 3], and
          --config.method.num_reflections=n
"""

from configs import common


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  return common.attack(arg, 'refool', reflections='')
