"""The quickstart: the whole question on real images, in minutes on a laptop.

Setting:  digits 16×16, PreAct-ResNet18 of width 16, BadNets 10 %, FT and
          FT-SAM with 5 % clean data, BEC, white-box re-activation with
          controls, linear path
Command:  python -m launch.quickstart --workdir=DIR
Expected: README; CPU, two cores, minutes
Quick:    --config=configs/quickstart.py:quick (toy world, for tests)
"""

from ml_collections import config_dict

from configs import common
from configs.attacks import badnets
from configs.connectivity import linear
from configs.defenses import ft, ft_sam
from configs.existence import bec
from configs.reactivation import white_box
from configs.training import clean


def get_config(arg: str | None = None):
  """Settings of `launch.quickstart`."""
  options = common.parse_arg(
    arg, dataset='digits16', arch='preactresnet18', width=16, quick=False
  )
  net = f'dataset={options.dataset},arch={options.arch}'
  if not options.quick:
    net += f',width={options.width},epochs=10'
  data = f'dataset={options.dataset}'
  return config_dict.ConfigDict(
    {
      'seed': 0,
      'clean': clean.get_config(net),
      'attacks': {'badnets': badnets.get_config(net)},
      'defenses': {
        'ft': ft.get_config(data),
        'ft_sam': ft_sam.get_config(data),
      },
      'existence': bec.get_config(data),
      'reactivations': {'white_box': white_box.get_config(data)},
      'paths': {'linear': linear.get_config(data)},
    }
  )
