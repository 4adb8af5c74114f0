"""QRA: a learned perturbation of each image that leaves a clean model alone.

Paper:    Min et al., NeurIPS 2024: L∞ 16/255, α = 0.2, 500 clean and 500
          triggered images, 50 epochs; the retuned model is that of
          configs/reactivation/retuning_attack.py
Command:  python -m launch.reactivate --config=configs/reactivation/qra.py
            --parents='defended/cifar10/preactresnet18/*'
Expected: README
Quick:    --config=configs/reactivation/qra.py:quick
          (toy world, seconds)
"""

from configs import common

# Ours: fewer images and a narrower generator, about as many steps.
_DIGITS = {
  'num_clean': 200,
  'num_poisoned': 200,
  'batch_size': 64,
  'width': 256,
}
_SMALL = {
  'digits16': _DIGITS,
  'digits32': _DIGITS,
  'synthetic': {
    'num_clean': 128,
    'num_poisoned': 128,
    'batch_size': 32,
    'width': 64,
  },
}


def get_config(arg: str | None = None):
  """Settings of `launch.reactivate`."""
  return common.reactivation(arg, 'qra', _SMALL)
