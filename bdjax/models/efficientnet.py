"""EfficientNet-B3, laid out as in torchvision.

Places are named by torchvision's own paths: 'features.0.0' is the stem,
'features.1' to 'features.7' are the stages, 'features.2.0' the first block of
the second one, 'features.8.0' the last convolution. In a block,
'features.2.0.block.0.0' is a convolution and 'features.2.0.block.0.1' its norm.

References: Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional
Neural Networks, ICML 2019.
"""

import math

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, inverted, layers, taps

# B0's stages: expansion, kernel, stride, output channels and number of blocks.
_STAGES = (
  (1, 3, 1, 16, 1),
  (6, 3, 2, 24, 2),
  (6, 5, 2, 40, 2),
  (6, 3, 2, 80, 3),
  (6, 5, 1, 112, 3),
  (6, 5, 2, 192, 4),
  (6, 3, 1, 320, 1),
)
_STEM = 32
_WIDER, _DEEPER = 1.2, 1.4  # B3 by B0
_WIDTH = 40  # channels of B3's stem
_LAST = 4  # of the last convolution's channels by those of the last stage


def efficientnet_b3(
  spec: types.DataSpec,
  *,
  width: int = _WIDTH,
  blocks: int | None = None,
  stages: int | None = None,
  dropout: float = 0.0,
  stochastic_depth: float = 0.0,
) -> types.Classifier:
  """Makes EfficientNet-B3; 12,233,232 weights for 1000 classes.

  Initial weights as torchvision draws them: normal of variance 2 / fan_out for
  convolutions, uniform in ±1/√(number of classes) for the head, biases 0.

  Divergences: in training torchvision drops 30 % of the features in front of
  the head and skips block i of n, counted from 0, with probability 0.2·i/n.
  Here that is off, so that training needs no key; `dropout=0.3,
  stochastic_depth=0.2` restores it, and then `apply(..., train=True)` must be
  given `key=`.

  Args:
    spec: image shape, number of classes and normalization; the sides of images
      are divided by 32.
    width: channels of the stem; all others scale with it, in multiples of 8.
    blocks: most blocks of a stage; None = 2, 3, 3, 5, 5, 6 and 2.
    stages: most stages; None = all seven; the last ones make small maps
      smaller.
    dropout: share of features in front of the head dropped in training.
    stochastic_depth: p, where block i of n is skipped with probability p·i/n.

  Returns:
    The classifier; `info.conv_taps` are the convolutions behind the stem,
    without squeeze-excitation.

  Raises:
    ValueError: for a width, blocks or stages that are not positive.
  """
  checks.positive(width=width, blocks=blocks, stages=stages)
  checks.unit_interval(dropout=dropout, stochastic_depth=stochastic_depth)
  net = EfficientNet(
    num_classes=spec.num_classes,
    width=width,
    depth=blocks,
    stages=stages,
    dropout=dropout,
    stochastic_depth=stochastic_depth,
  )
  convs = [('features.0', net.scaled(_STEM))]
  for block in net.blocks():
    convs += inverted.conv_places(block)
  convs.append(net.last())
  return classifier.from_linen(
    net,
    spec,
    draw=initial.drawn(initial.rule(initial.he_out, initial.uniform_out)),
    needs_key=max(dropout, stochastic_depth) > 0,
    arch='efficientnet_b3',
    conv_taps=tuple(f'{place}.0' for place, _ in convs[1:]),
    prune_graph=tuple(inverted.prune_group(*conv) for conv in convs),
  )


class EfficientNet(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the stem.
    depth: most blocks of a stage; None = all.
    stages: most stages; None = all.
    dropout: share of features in front of the head dropped in training.
    stochastic_depth: p, where block i of n is skipped with probability p·i/n.
  """

  num_classes: int
  width: int = _WIDTH
  depth: int | None = None
  stages: int | None = None
  dropout: float = 0.0
  stochastic_depth: float = 0.0

  @nn.nowrap
  def scaled(self, channels: int) -> int:
    """B0's number of channels at this width."""
    return layers.divisible(channels * _WIDER * self.width / _WIDTH)

  @nn.nowrap
  def blocks(self) -> list[inverted.Block]:
    """All blocks in order."""
    made, before = [], self.scaled(_STEM)
    for stage, facts in enumerate(_STAGES[: self.stages], 1):
      factor, size, stride, channels, count = facts
      count = math.ceil(_DEEPER * count)
      for i in range(min(count, self.depth or count)):
        made.append(
          inverted.Block(
            place=f'features.{stage}.{i}',
            inputs=before,
            expanded=layers.divisible(factor * before),
            outputs=self.scaled(channels),
            size=size,
            stride=1 if i else stride,
            squeezed=max(1, before // 4),
          )
        )
        before = made[-1].outputs
    return made

  @nn.nowrap
  def last(self) -> tuple[str, int]:
    """Place and channels of the last convolution."""
    stages = len(_STAGES[: self.stages])
    return f'features.{stages + 1}', _LAST * self.blocks()[-1].outputs

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    run = inverted.Pass(tap, train, {}, (nn.silu, nn.sigmoid))
    x = nn.silu(run.conv_norm('features.0', x, self.scaled(_STEM), 3, 2))
    blocks = self.blocks()
    for i, block in enumerate(blocks):
      rate = self.stochastic_depth * i / len(blocks)
      x = run.block(block, x, nn.silu, rate)
    x = nn.silu(run.conv_norm(self.last()[0], x, self.last()[1], 1))
    x = tap('penultimate', layers.spatial_mean(tap('penultimate_map', x)))
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name='head')(x)
