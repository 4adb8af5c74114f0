"""Wide ResNets for small images: three stages of pre-activation blocks.

A 3×3 stem of 16 channels, stages of 16·k, 32·k and 64·k channels, norm and ReLU
behind the last block. Blocks are those of PreAct-ResNet18: a projection
shortcut is a bare 1×1 convolution of the pre-activated input. Places are named
as there, the last norm is 'bn'.

References: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016.
"""

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, preactresnet, taps

_STAGES = (1, 2, 3)
_BLOCKS = 4  # depth 28 = 6 · 4 + 4
_FACTOR = 2


def wrn28_2(
  spec: types.DataSpec, *, width: int = 16, blocks: int | None = None
) -> types.Classifier:
  """Makes WideResNet-28-2; 1,467,610 weights at width 16 and 10 classes.

  Initial weights: normal of variance 2 / fan_out for convolutions; torch's
  default for the head, whose bias is 0.

  Divergences: published code averages windows of 8×8; here the whole last map
  is averaged, which is the same for 32×32 images. No dropout inside of blocks,
  which is off in the published code too unless asked for.

  Args:
    spec: image shape, number of classes and normalization.
    width: channels of the stem; the stages have 2, 4 and 8 times as many.
    blocks: most blocks of a stage; None = four.

  Returns:
    The classifier; `info.conv_taps` are the 24 convolutions of the stages.

  Raises:
    ValueError: for a width or blocks that are not positive.
  """
  checks.positive(width=width, blocks=blocks)
  depth = min(_BLOCKS, blocks or _BLOCKS)
  rule = initial.rule(initial.he_out, initial.uniform_in)
  return classifier.from_linen(
    WideResNet(num_classes=spec.num_classes, width=width, depth=depth),
    spec,
    draw=initial.drawn(rule),
    arch='wrn28_2',
    conv_taps=tuple(
      f'stage{stage}.{block}.conv{i}'
      for stage in _STAGES
      for block in range(depth)
      for i in (1, 2)
    ),
    prune_graph=_prune_graph(width, depth),
  )


def _features(width: int, stage: int) -> int:
  return _FACTOR * width * 2 ** (stage - 1)


def _prune_graph(width: int, depth: int) -> tuple[types.PruneGroup, ...]:
  groups = []
  before, previous = width, ('stem',)
  for stage in _STAGES:
    features = _features(width, stage)
    for block in range(depth):
      module, tap = f'stage{stage}_{block}', f'stage{stage}.{block}'
      # All other first norms of a block, and the last one, are fed by a sum.
      conv = ('stem',) if (stage, block) == (1, 0) else None
      inner = (module, 'conv1')
      groups += [
        types.PruneGroup((module, 'bn1'), conv, before, previous, f'{tap}.bn1'),
        types.PruneGroup((module, 'bn2'), inner, features, inner, f'{tap}.bn2'),
      ]
      # A projection is the last of its block's modules.
      previous = (module, 'shortcut' if features != before else 'conv2')
      before = features
  groups.append(types.PruneGroup(('bn',), None, before, previous, 'bn'))
  return tuple(groups)


class WideResNet(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the stem.
    depth: blocks per stage.
  """

  num_classes: int
  width: int = 16
  depth: int = _BLOCKS

  @nn.compact
  def __call__(
    self, images: jax.Array, tap: taps.Taps, train: bool
  ) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    x = layers.through_conv('stem', images, tap, self.width, 3)
    for stage in _STAGES:
      for block in range(self.depth):
        x = preactresnet.Block(
          features=_features(self.width, stage),
          stride=2 if stage > 1 and block == 0 else 1,
          name=f'stage{stage}_{block}',
        )(x, tap.within(f'stage{stage}.{block}'), train)
      x = tap(f'stage{stage}', x)
    x = nn.relu(layers.through_norm('bn', x, tap, train))
    x = tap('penultimate_map', x)
    x = tap('penultimate', layers.spatial_mean(x))
    return nn.Dense(self.num_classes, name='head')(x)
