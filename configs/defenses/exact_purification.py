"""Exact purification: unlearns the attacker's own trigger, an upper bound.

Paper:    Min et al., NeurIPS 2024, who give no settings; PAM's unlearning
Command:  python -m launch.defend
            --config=configs/defenses/exact_purification.py
            --parents='attacked/cifar10/preactresnet18/*'
Expected: full setting not yet measured here; digits16, width 16, seed 0: C-Acc
          97.8, ASR 0.0 (BadNets); 99.2, 0.0 (Blended); 98.9, 0.0 (FTrojan)
Quick:    --config=configs/defenses/exact_purification.py:quick (toy world,
          seconds)
"""

from configs import common

# Ours: small sets take small batches. Five times the rate costs digits16 up to
# eleven points of C-Acc. The toy world takes FT-SAM's rate; FT keeps the
# backdoor there.
_OTHERS = {
  'digits16': {'batch_size': 32},
  'digits32': {'batch_size': 32},
  'synthetic': {'lr': 0.1, 'batch_size': 32, 'epochs': 20},
}


def get_config(arg: str | None = None):
  """Settings of `launch.defend`."""
  return common.defense(arg, 'exact_purification', _OTHERS, length='epochs')
