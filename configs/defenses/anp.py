"""ANP: pruning of channels that are sensitive to adversarial weight noise.

Paper:    Wu and Wang, NeurIPS 2021; ε = 0.4, α = 0.2, 2000 steps
Command:  python -m launch.defend --config=configs/defenses/anp.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here
Quick:    --config=configs/defenses/anp.py:quick (toy world, seconds)
"""

from configs import common

_OTHERS = {
  # Ours: small sets take small batches, and fewer steps are enough. A single
  # error among 14 held-out images is a drop of 0.07: none is tolerated.
  'digits16': {'batch_size': 32, 'num_steps': 600, 'max_drop': 0.05},
  'digits32': {'batch_size': 32, 'num_steps': 600, 'max_drop': 0.05},
  'synthetic': {'batch_size': 32, 'num_steps': 200},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'anp', _OTHERS, length='num_steps')
