"""What the contract tests must know of each defense; one entry per method."""

from typing import NamedTuple


class Effect(NamedTuple):
  """What a setting does to each of three BadNets models of the toy world.

  Attributes:
    hparams: the setting.
    asr: (least, largest) attack success rate that is left of 1.0.
    c_acc: least clean accuracy that is left of 1.0.
  """

  hparams: dict
  asr: tuple[float, float]
  c_acc: float


class Facts(NamedTuple):
  """What a method promises.

  Attributes:
    short: hyper-parameters that make it a matter of a few steps.
    sensitive: a float hyper-parameter that changes the result, and a value.
    effects: what it achieves on the toy world.
    frozen: beginnings of paths in `params` that stay bit-identical.
    moves: which other leaves of `params` move: 'all', 'some' or 'none'.
    train_bn: whether running statistics move.
    uses_key: whether another key gives another result.
  """

  short: dict
  sensitive: dict
  effects: tuple[Effect, ...]
  frozen: tuple[str, ...] = ()
  moves: str = 'all'
  train_bn: bool = True
  uses_key: bool = True


BATCH = 4
_TUNE = dict(epochs=20, batch_size=32)

FACTS: dict[str, Facts] = {
  'ft': Facts(
    short=dict(epochs=1, batch_size=BATCH),
    sensitive=dict(lr=0.5),
    # The baseline: at the rate at which FT-SAM removes the backdoor it stays.
    effects=(
      Effect(dict(lr=0.1, **_TUNE), asr=(0.8, 1.0), c_acc=0.98),
      Effect(dict(lr=1.0, **_TUNE), asr=(0.0, 0.5), c_acc=0.95),
    ),
  ),
  'ft_sam': Facts(
    short=dict(epochs=1, batch_size=BATCH),
    sensitive=dict(lr=0.5),
    effects=(Effect(dict(lr=0.1, **_TUNE), asr=(0.0, 0.4), c_acc=0.95),),
  ),
}
