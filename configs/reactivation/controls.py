"""Is it the backdoor? The published comparison with adversarial attacks.

Paper:    Zhu, Liang, Wu, NeurIPS 2024, Tables 9-11: queries with and without
          the trigger, neurons by which the attacks act, noise they survive;
          the clean model is ours
Command:  python -m launch.reactivate --config=configs/reactivation/controls.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: not yet measured
Quick:    --config=configs/reactivation/controls.py:quick
          (toy world, seconds)
Figures:  launch.report draws them: queries.png, comparison.png
"""

from configs.existence import bec
from configs.reactivation import black_box


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  config = black_box.get_config(arg)
  config.grid = True
  config.noise = (0.0, 0.03, 0.06, 0.09)
  config.num_cka = bec.get_config(arg).num_cka
  return config
