"""LIRA (Doan et al., ICCV 2021): a learned trigger too faint to see.

Paper:    an ASR near 1.00 at the accuracy of clean training, on other networks;
          BackdoorBench's figures are those of the first phase's model
Command:  python -m launch.attack --config=configs/attacks/lira.py
Expected: full setting not yet measured here
Quick:    --config=configs/attacks/lira.py:quick (toy world, seconds)
All-to-all: --config.method.label_mode=all2all
"""

from configs import common

# Epochs of both phases, and of the first one alone.
_EPOCHS = {'gtsrb': (150, 25), 'tiny_imagenet': (600, 100)}
_DEFAULT = (300, 50)

# Ours: such short training takes a louder trigger, learned faster.
_SMALL = {'eps': 0.1, 'lr_generator': 0.003, 'trigger_epochs': 8}


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  options = common.parse_arg(arg, **common.WORLD)
  config = common.in_loop_attack(arg, 'lira')
  if options.dataset in common.SMALL_WORLDS:
    config.method.update(_SMALL)
    return config
  epochs, config.method.trigger_epochs = _EPOCHS.get(options.dataset, _DEFAULT)
  if options.epochs is None:
    config.train.epochs = epochs
  config.train.t_max = 50
  return config
