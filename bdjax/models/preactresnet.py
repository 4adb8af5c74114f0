"""PreAct-ResNet18 for small images, in the form backdoor benchmarks use.

A 3×3 stem without norm or ReLU, four stages of two pre-activation blocks, and
a linear head on the mean of the last map. Unlike the published network it has
neither norm nor ReLU after the last block, so features may be negative, and a
projection shortcut is a bare 1×1 convolution of the pre-activated input.

References: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016.
"""

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, norm, taps

_STAGES = (1, 2, 3, 4)
_BLOCKS = (0, 1)


def preactresnet18(
  spec: types.DataSpec, *, width: int = 64
) -> types.Classifier:
  """Makes PreAct-ResNet18; 11,171,146 weights at width 64 and 10 classes.

  BN: momentum and epsilon of torch. Initial weights: torch's defaults, uniform
  in ±1/√fan_in.

  Args:
    spec: image shape, number of classes and normalization.
    width: channels of stem and first stage; later stages double it.

  Returns:
    The classifier; `info.conv_taps` are the 16 convolutions of the stages.
  """
  checks.positive(width=width)
  return classifier.from_linen(
    PreActResNet18(num_classes=spec.num_classes, width=width),
    spec,
    draw=initial.torch_default,
    arch='preactresnet18',
    conv_taps=tuple(
      f'stage{stage}.{block}.{conv}'
      for stage in _STAGES
      for block in _BLOCKS
      for conv in ('conv1', 'conv2')
    ),
    prune_graph=_prune_graph(width),
  )


def _prune_graph(width: int) -> tuple[types.PruneGroup, ...]:
  groups = []
  before, previous = width, ('stem',)
  for stage in _STAGES:
    features = width * 2 ** (stage - 1)
    for block in _BLOCKS:
      module, tap = f'stage{stage}_{block}', f'stage{stage}.{block}'
      is_first = (stage, block) == (1, 0)
      # All other first norms of a block are fed by a residual sum.
      conv = ('stem',) if is_first else None
      groups += [
        types.PruneGroup((module, 'bn1'), conv, before, previous, f'{tap}.bn1'),
        types.PruneGroup(
          norm=(module, 'bn2'),
          conv=(module, 'conv1'),
          channels=features,
          previous=(module, 'conv1'),
          tap=f'{tap}.bn2',
        ),
      ]
      # A projection is the last of its block's modules.
      previous = (module, 'shortcut' if features != before else 'conv2')
      before = features
  return tuple(groups)


class PreActResNet18(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of stem and first stage.
  """

  num_classes: int
  width: int = 64

  @nn.compact
  def __call__(
    self, images: jax.Array, tap: taps.Taps, train: bool
  ) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    x = tap.through('stem', layers.conv(self.width, 3, name='stem'), images)
    for stage in _STAGES:
      for block in _BLOCKS:
        x = Block(
          features=self.width * 2 ** (stage - 1),
          stride=2 if stage > 1 and block == 0 else 1,
          name=f'stage{stage}_{block}',
        )(x, tap.within(f'stage{stage}.{block}'), train)
      x = tap(f'stage{stage}', x)
    x = tap('penultimate_map', x)
    x = tap('penultimate', layers.spatial_mean(x))
    return nn.Dense(self.num_classes, name='head')(x)


class Block(nn.Module):
  """Twice norm, ReLU, convolution; a projection starts at the first ReLU.

  Attributes:
    features: channels of both convolutions.
    stride: that of the first one.
  """

  features: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """[b, h, w, c] -> [b, h / stride, w / stride, features]."""

    def conv(name, size, stride, x):
      layer = layers.conv(self.features, size, stride, name=name)
      return tap.through(name, layer, x)

    def norm_relu(name, x):
      return nn.relu(tap.through(name, norm.BatchNorm(name=name), x, train))

    active = norm_relu('bn1', x)
    out = conv('conv1', 3, self.stride, active)
    out = conv('conv2', 3, 1, norm_relu('bn2', out))
    if self.stride != 1 or x.shape[-1] != self.features:
      x = conv('shortcut', 1, self.stride, active)
    return out + x
