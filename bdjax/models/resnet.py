"""ResNets with norm and ReLU behind every convolution.

Places are named as in the pre-activation network: 'stem' and 'stem_bn', then
'stage1.0.conv1', 'stage1.0.bn1' and so on; a projection shortcut is the
convolution 'shortcut' and its norm 'shortcut_bn'. Torch calls the modules of
the stem conv1 and bn1, stages layer1 to layer4, a projection shortcut.0 and
shortcut.1 (torchvision: downsample.0 and downsample.1) and the head linear
(torchvision: fc).

References: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from typing import Literal

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, taps

Stem = Literal['small', 'imagenet']

# Torchvision's weights: normal for convolutions, torch's default for the head.
_TORCHVISION = initial.drawn(
  initial.rule(initial.he_out, initial.uniform_in, initial.uniform_in)
)


def resnet18(
  spec: types.DataSpec,
  *,
  width: int = 64,
  blocks: int | None = None,
  stem: Stem = 'small',
) -> types.Classifier:
  """Makes ResNet-18; by default the form for small images.

  11,173,962 weights at width 64 and 10 classes; 11,689,512 for 1000 classes
  with the stem for ImageNet, which makes it torchvision's.

  Initial weights: torch's defaults, uniform in ±1/√fan_in, with the small stem;
  torchvision's, normal of variance 2 / fan_out, with the other one.

  Divergences: published code for small images averages windows of 4×4; here
  the whole last map is averaged, which is the same for 32×32 images.

  Args:
    spec: image shape, number of classes and normalization.
    width: channels of stem and first stage; later stages double it.
    blocks: most blocks of a stage; None = two in each.
    stem: 'small', a 3×3 convolution of stride 1, or 'imagenet', a 7×7 one of
      stride 2 and a 3×3 maximum of stride 2.

  Returns:
    The classifier; `info.conv_taps` are the 16 convolutions of the stages.

  Raises:
    ValueError: for a width or blocks that are not positive, or another stem.
  """
  draw = initial.torch_default if stem == 'small' else _TORCHVISION
  return _make(spec, 'resnet18', (2,) * 4, False, width, blocks, stem, draw)


def resnet50(
  spec: types.DataSpec,
  *,
  width: int = 64,
  blocks: int | None = None,
  stem: Stem = 'imagenet',
) -> types.Classifier:
  """Makes torchvision's ResNet-50; 25,557,032 weights for 1000 classes.

  Blocks of three convolutions, the second with the stride. Initial weights:
  torchvision's, normal of variance 2 / fan_out. The published stem divides the
  sides of the images by four; for 32×32 images 'small' keeps them.

  Args:
    spec: image shape, number of classes and normalization.
    width: channels of the stem and inner channels of the first stage; later
      stages double it, blocks end with four times as many.
    blocks: most blocks of a stage; None = 3, 4, 6 and 3.
    stem: 'imagenet' or 'small', as in `resnet18`.

  Returns:
    The classifier; `info.conv_taps` are the 48 convolutions of the stages.

  Raises:
    ValueError: as `resnet18`.
  """
  depths = (3, 4, 6, 3)
  return _make(
    spec, 'resnet50', depths, True, width, blocks, stem, _TORCHVISION
  )


def _make(spec, arch, depths, is_bottleneck, width, blocks, stem, draw):
  checks.positive(width=width, blocks=blocks)
  checks.one_of(('small', 'imagenet'), stem=stem)
  net = ResNet(
    num_classes=spec.num_classes,
    depths=tuple(min(n, blocks or n) for n in depths),
    is_bottleneck=is_bottleneck,
    width=width,
    stem=stem,
  )
  return classifier.from_linen(
    net,
    spec,
    draw=draw,
    arch=arch,
    conv_taps=_conv_taps(net),
    prune_graph=_prune_graph(net),
  )


def _conv_taps(net: 'ResNet') -> tuple[str, ...]:
  return tuple(
    f'stage{stage}.{block}.conv{i + 1}'
    for stage, depth in enumerate(net.depths, 1)
    for block in range(depth)
    for i in range(3 if net.is_bottleneck else 2)
  )


def _prune_graph(net: 'ResNet') -> tuple[types.PruneGroup, ...]:
  """Every norm stands right behind a convolution."""
  group = lambda module, tap, conv, bn, channels: types.PruneGroup(
    norm=(*module, bn),
    conv=(*module, conv),
    channels=channels,
    previous=(*module, conv),
    tap=f'{tap}{bn}',
  )
  groups, before = [group((), '', 'stem', 'stem_bn', net.width)], net.width
  for stage, depth in enumerate(net.depths, 1):
    inner = net.width * 2 ** (stage - 1)
    widths = (inner, inner, 4 * inner) if net.is_bottleneck else (inner, inner)
    for block in range(depth):
      module, tap = (f'stage{stage}_{block}',), f'stage{stage}.{block}.'
      groups += [
        group(module, tap, f'conv{i}', f'bn{i}', channels)
        for i, channels in enumerate(widths, 1)
      ]
      if before != widths[-1]:
        groups.append(group(module, tap, 'shortcut', 'shortcut_bn', widths[-1]))
      before = widths[-1]
  return tuple(groups)


class ResNet(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    depths: blocks per stage.
    is_bottleneck: whether a block is 1×1, 3×3, 1×1 in place of twice 3×3.
    width: channels of the stem.
    stem: 'small' or 'imagenet'.
  """

  num_classes: int
  depths: tuple[int, ...]
  is_bottleneck: bool = False
  width: int = 64
  stem: Stem = 'small'

  @nn.compact
  def __call__(
    self, images: jax.Array, tap: taps.Taps, train: bool
  ) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    is_small = self.stem == 'small'
    size, stride = (3, 1) if is_small else (7, 2)
    x = layers.through_conv('stem', images, tap, self.width, size, stride)
    x = nn.relu(layers.through_norm('stem_bn', x, tap, train))
    x = x if is_small else layers.max_pool3(x)
    for stage, depth in enumerate(self.depths, 1):
      for block in range(depth):
        x = _Block(
          features=self.width * 2 ** (stage - 1),
          stride=2 if stage > 1 and block == 0 else 1,
          is_bottleneck=self.is_bottleneck,
          name=f'stage{stage}_{block}',
        )(x, tap.within(f'stage{stage}.{block}'), train)
      x = tap(f'stage{stage}', x)
    x = tap('penultimate_map', x)
    x = tap('penultimate', layers.spatial_mean(x))
    return nn.Dense(self.num_classes, name='head')(x)


class _Block(nn.Module):
  """Convolutions with norms, added to the input or to its projection."""

  features: int
  stride: int
  is_bottleneck: bool

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    def conv_norm(conv, bn, x, features, size, stride=1):
      x = layers.through_conv(conv, x, tap, features, size, stride)
      return layers.through_norm(bn, x, tap, train)

    d, stride = self.features, self.stride
    plan = [(d, 3, stride), (d, 3, 1)]
    if self.is_bottleneck:
      plan = [(d, 1, 1), (d, 3, stride), (4 * d, 1, 1)]
    out = x
    for i, (features, size, step) in enumerate(plan, 1):
      out = nn.relu(out) if i > 1 else out
      out = conv_norm(f'conv{i}', f'bn{i}', out, features, size, step)
    if stride != 1 or x.shape[-1] != out.shape[-1]:
      x = conv_norm('shortcut', 'shortcut_bn', x, out.shape[-1], 1, stride)
    return nn.relu(out + x)
