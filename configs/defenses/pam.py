"""PAM: unlearns an inverted trigger as seen from the path to the backdoor.

Paper:    Min et al., NeurIPS 2024
Command:  python -m launch.defend --config=configs/defenses/pam.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; digits16, width 16: C-Acc 99.2,
          ASR 0.0 (BadNets); C-Acc 96.1, ASR 0.0 (Blended)
Quick:    --config=configs/defenses/pam.py:quick (toy world, seconds)
"""

from configs import common

# Ours. Few clean images make few steps, which take larger rates; the one round
# is BTI-DBF's. The toy world's rate and length were chosen by its own ASR,
# among twenty settings.
_OWN = {
  'digits16': {'lr': 0.05},
  'digits32': {'lr': 0.05},
  'synthetic': {'lr': 1.0, 'rho': 2.0},
}
_OTHERS = {
  name: {**values, **_OWN[name]} for name, values in common.INVERSION.items()
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'pam', _OTHERS, length='rounds')
