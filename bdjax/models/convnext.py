"""ConvNeXt, laid out as in torchvision.

Places are named by torchvision's own paths: 'features.0.0' is the stem,
'features.1.0.block.0' the depthwise convolution of the first block,
'features.2.1' the convolution between the first two stages; besides these
'stage1' to 'stage4' and 'avgpool', the pooled vector in front of the last norm.
Norms are over channels: there are no running statistics and nothing to prune by
BatchNorm's scales.

References: Liu et al., A ConvNet for the 2020s, CVPR 2022.
"""

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, taps

_DEPTHS = (3, 3, 9, 3)
_LAYER_SCALE = 1e-6
_SMALLEST = 32


def convnext_tiny(
  spec: types.DataSpec,
  *,
  width: int = 96,
  blocks: int | None = None,
  stochastic_depth: float = 0.0,
) -> types.Classifier:
  """Makes ConvNeXt-T; 28,589,128 weights for 1000 classes.

  Initial weights as torchvision draws them: normal of deviation 0.02, biases 0,
  layer scales 1e-6.

  Divergences: torchvision skips blocks in training, the last one with
  probability 0.1. Here that is off, so that training needs no key;
  `stochastic_depth=0.1` restores it, and then `apply(..., train=True)` must be
  given `key=`. The benchmark starts from ImageNet's weights.

  Args:
    spec: image shape, at least 32×32, number of classes and normalization.
    width: channels of the first stage; later stages double it.
    blocks: most blocks of a stage; None = 3, 3, 9 and 3.
    stochastic_depth: probability of skipping the last block; that of the others
      falls linearly to 0 at the first.

  Returns:
    The classifier; `info.conv_taps` are the depthwise convolutions and those
    between the stages.

  Raises:
    ValueError: for a width or blocks that are not positive, or images smaller
      than 32×32.
  """
  checks.positive(width=width, blocks=blocks)
  checks.unit_interval(stochastic_depth=stochastic_depth)
  if min(spec.image_shape[:2]) < _SMALLEST:
    raise ValueError(
      f"'convnext_tiny' divides the sides of images by 32; '{spec.name}' has "
      f"{spec.image_shape}. Use 'preactresnet18', 'resnet18' or 'tiny'."
    )
  net = ConvNeXt(
    num_classes=spec.num_classes,
    width=width,
    depths=tuple(min(n, blocks or n) for n in _DEPTHS),
    stochastic_depth=stochastic_depth,
  )
  return classifier.from_linen(
    net,
    spec,
    draw=initial.drawn(_law),
    needs_key=stochastic_depth > 0,
    arch='convnext_tiny',
    conv_taps=_conv_taps(net.depths),
  )


def _law(path, shape, kernel) -> initial.Law:
  if path[-1].endswith('layer_scale'):
    return initial.Law('constant', _LAYER_SCALE)
  small = initial.normal(0.02)
  return initial.rule(small, small)(path, shape, kernel)


def _conv_taps(depths: tuple[int, ...]) -> tuple[str, ...]:
  places = []
  for stage, depth in enumerate(depths):
    if stage:
      places.append(f'features.{2 * stage}.1')
    places += [f'features.{2 * stage + 1}.{i}.block.0' for i in range(depth)]
  return tuple(places)


class ConvNeXt(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the first stage.
    depths: blocks per stage.
    stochastic_depth: probability of skipping the last block.
  """

  num_classes: int
  width: int = 96
  depths: tuple[int, ...] = _DEPTHS
  stochastic_depth: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    x = self._patches('features.0.0', x, tap, self.width, 4)
    x = layers.through_layer_norm('features.0.1', x, tap)
    skipped = 0
    for stage, depth in enumerate(self.depths):
      if stage:
        place = f'features.{2 * stage}'
        x = layers.through_layer_norm(f'{place}.0', x, tap)
        x = self._patches(f'{place}.1', x, tap, self.width * 2**stage, 2)
      for i in range(depth):
        rate = self.stochastic_depth * skipped / max(sum(self.depths) - 1, 1)
        x = self._block(f'features.{2 * stage + 1}.{i}', x, tap, rate, train)
        skipped += 1
      x = tap(f'stage{stage + 1}', x)
    x = tap('penultimate_map', x)
    x = tap('avgpool', layers.spatial_mean(x))
    x = tap('penultimate', layers.through_layer_norm('classifier.0', x, tap))
    return nn.Dense(self.num_classes, name='head')(x)

  def _patches(self, place, x, tap, features, size):
    """A convolution whose windows do not overlap."""
    return layers.through_conv(
      place, x, tap, features, size, size, padding=0, use_bias=True
    )

  def _block(self, place, x, tap, rate, train):
    """A depthwise convolution and two linear layers, scaled and added."""
    d = x.shape[-1]
    out = layers.through_conv(
      f'{place}.block.0', x, tap, d, 7, groups=d, use_bias=True
    )
    out = layers.through_layer_norm(f'{place}.block.2', out, tap)
    out = layers.through_dense(f'{place}.block.3', out, tap, 4 * d)
    out = nn.gelu(out, approximate=False)
    out = layers.through_dense(f'{place}.block.5', out, tap, d)
    scale = self.param(
      layers.flat(f'{place}.layer_scale'),
      nn.initializers.constant(_LAYER_SCALE),
      (d,),
    )
    out = layers.drop_examples(out * scale.reshape(1, 1, 1, -1), rate, train)
    return tap(place, x + out)
