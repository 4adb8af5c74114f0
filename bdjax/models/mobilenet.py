"""MobileNetV3-Large, laid out as in torchvision.

Places are named by torchvision's own paths: 'features.0.0' is the stem,
'features.1' to 'features.15' are the blocks, 'features.16.0' the last
convolution, 'avgpool' the pooled vector and 'classifier.0' the linear layer
between it and the head. In a block, 'features.4.block.0.0' is a convolution and
'features.4.block.0.1' its norm.

References: Howard et al., Searching for MobileNetV3, ICCV 2019.
"""

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, inverted, layers, taps

# Per stage: stride, kernel, output channels, squeeze-excitation?, hard swish?,
# and the channels of each block's depthwise convolution.
_STAGES = (
  (1, 3, 16, False, False, (16,)),
  (2, 3, 24, False, False, (64, 72)),
  (2, 5, 40, True, False, (72, 120, 120)),
  (2, 3, 80, False, True, (240, 200, 184, 184)),
  (1, 3, 112, True, True, (480, 672)),
  (2, 5, 160, True, True, (672, 960, 960)),
)
_STEM = 16
_LAST = 6  # of the last convolution's channels by those of the last block
_HIDDEN = 1280
_NORM = {'decay': 0.99, 'eps': 1e-3}


def mobilenet_v3_large(
  spec: types.DataSpec,
  *,
  width: int = 16,
  blocks: int | None = None,
  stages: int | None = None,
  dropout: float = 0.0,
) -> types.Classifier:
  """Makes MobileNetV3-Large; 5,483,032 weights for 1000 classes.

  BN: momentum 0.01 of torch, ε = 1e-3. Initial weights as torchvision draws
  them: normal of variance 2 / fan_out for convolutions, of deviation 0.01 for
  linear layers, biases 0.

  Divergences: torchvision drops a fifth of the hidden layer's units in
  training. Here that is off, so that training needs no key; `dropout=0.2`
  restores it, and then `apply(..., train=True)` must be given `key=`.

  Args:
    spec: image shape, number of classes and normalization; the sides of images
      are divided by 32.
    width: channels of the stem; all others scale with it, in multiples of 8.
    blocks: most blocks of a stage; None = 1, 2, 3, 4, 2 and 3.
    stages: most stages; None = all six; the last ones make small maps smaller.
    dropout: share of hidden units dropped in training.

  Returns:
    The classifier; `info.conv_taps` are the convolutions behind the stem,
    without squeeze-excitation.

  Raises:
    ValueError: for a width, blocks or stages that are not positive.
  """
  checks.positive(width=width, blocks=blocks, stages=stages)
  checks.unit_interval(dropout=dropout)
  net = MobileNetV3(
    num_classes=spec.num_classes,
    width=width,
    depth=blocks,
    stages=stages,
    dropout=dropout,
  )
  convs = [('features.0', net.scaled(_STEM))]
  for block, _ in net.blocks():
    convs += inverted.conv_places(block)
  convs.append(net.last())
  return classifier.from_linen(
    net,
    spec,
    draw=initial.vgg,
    needs_key=dropout > 0,
    arch='mobilenet_v3_large',
    conv_taps=tuple(f'{place}.0' for place, _ in convs[1:]),
    prune_graph=tuple(inverted.prune_group(*conv) for conv in convs),
    norm_decay=_NORM['decay'],
  )


class MobileNetV3(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the stem.
    depth: most blocks of a stage; None = all.
    stages: most stages; None = all.
    dropout: share of hidden units dropped in training.
  """

  num_classes: int
  width: int = _STEM
  depth: int | None = None
  stages: int | None = None
  dropout: float = 0.0

  @nn.nowrap
  def scaled(self, channels: int) -> int:
    """A published number of channels at this width."""
    return layers.divisible(channels * self.width / _STEM)

  @nn.nowrap
  def blocks(self) -> list[tuple[inverted.Block, bool]]:
    """All blocks, and whether their activation is the hard swish."""
    made, before = [], self.scaled(_STEM)
    for stage in _STAGES[: self.stages]:
      stride, size, outputs, is_squeezed, is_swish, expanded = stage
      for i, channels in enumerate(expanded[: self.depth]):
        wide = self.scaled(channels)
        block = inverted.Block(
          place=f'features.{len(made) + 1}',
          inputs=before,
          expanded=wide,
          outputs=self.scaled(outputs),
          size=size,
          stride=1 if i else stride,
          squeezed=layers.divisible(wide // 4) if is_squeezed else 0,
        )
        made.append((block, is_swish))
        before = block.outputs
    return made

  @nn.nowrap
  def last(self) -> tuple[str, int]:
    """Place and channels of the last convolution."""
    blocks = self.blocks()
    return f'features.{len(blocks) + 1}', _LAST * blocks[-1][0].outputs

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    run = inverted.Pass(tap, train, _NORM, (nn.relu, nn.hard_sigmoid))
    x = run.conv_norm('features.0', x, self.scaled(_STEM), 3, 2)
    x = nn.hard_swish(x)
    for block, is_swish in self.blocks():
      x = run.block(block, x, nn.hard_swish if is_swish else nn.relu)
    x = nn.hard_swish(run.conv_norm(self.last()[0], x, self.last()[1], 1))
    x = tap('avgpool', layers.spatial_mean(tap('penultimate_map', x)))
    x = layers.through_dense('classifier.0', x, tap, self.scaled(_HIDDEN))
    x = nn.hard_swish(x)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    return nn.Dense(self.num_classes, name='head')(tap('penultimate', x))
