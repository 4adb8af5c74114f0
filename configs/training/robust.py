"""An adversarially trained model: the surrogate of label-consistent attacks.

Paper:    Madry et al., ICLR 2018; ε = 8/255, ten steps of 2/255; otherwise the
          recipe of configs/training/clean.py
Command:  python -m launch.train --config=configs/training/robust.py
Expected: full setting not yet measured here
Quick:    --config=configs/training/robust.py:quick (toy world, seconds)
"""

from bdjax import training
from configs import common
from configs.training import clean


def get_config(arg: str | None = None):
  """Settings of `launch.train`."""
  config = clean.get_config(arg)
  config.adversary = common.fields(training.AdversaryHParams)
  return config
