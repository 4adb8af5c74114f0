"""PoisonInk (Zhang et al., IEEE TIP 2022): colored edges, 10 % poisoning.

Paper:    BackdoorBench's settings, for which it gives no figures
Command:  python -m launch.attack --config=configs/attacks/poison_ink.py
Expected: full setting not yet measured here
Quick:    --config=configs/attacks/poison_ink.py:quick (toy world, seconds)

The hiding network is crafted from the training images, once for all victims in
a workdir; --config.assets.hider=FILE.npy takes a finished one.
"""

from configs import common

# Ours: so few images and so small ones take narrow networks, a larger rate and
# less patience. Digits and the toy world are not mirrored.
_SMALL = {
  'width': 8,
  'reveal_width': 16,
  'stages': ('none', 'crop'),
  'craft_epochs': 15,
  'craft_lr': 2e-3,
}
_OTHERS = {
  'digits16': _SMALL,
  'digits32': _SMALL,
  'synthetic': {**_SMALL, 'craft_epochs': 5},
}


def get_config(arg: str | None = None):
  """Settings of `launch.attack`."""
  config = common.attack(arg, 'poison_ink', hider='')
  config.method.update(_OTHERS.get(config.data.name, {}))
  return config
