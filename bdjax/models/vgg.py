"""VGG19 with BatchNorm, laid out as in torchvision.

Sixteen 3×3 convolutions, each followed by norm and ReLU, five 2×2 maximum
pools, adaptive average pooling to 7×7 and three linear layers. Places are named
by torchvision's own paths: 'features.0' is the first convolution, 'features.1'
its norm, 'classifier.3' the second linear layer.

References: Simonyan and Zisserman, Very Deep Convolutional Networks for
Large-Scale Image Recognition, ICLR 2015.
"""

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, norm, taps

# Convolutions per stage and their channels in units of the width.
_STAGES = ((2, 1), (2, 2), (4, 4), (4, 8), (4, 8))
_POOLED = 7


def vgg19_bn(
  spec: types.DataSpec, *, width: int = 64, dropout: float = 0.0
) -> types.Classifier:
  """Makes VGG19-BN; initial weights as torchvision draws them.

  Divergences: torchvision drops half of the two hidden layers' units in
  training. Here that is off, so that training needs no key; `dropout=0.5`
  restores it, and then `apply(..., train=True)` must be given `key=`.

  Args:
    spec: image shape, at least 32×32, number of classes and normalization.
    width: channels of the first stage; hidden layers have 64·width units.
    dropout: share of hidden units dropped in training.

  Returns:
    The classifier; `info.conv_taps` are its 16 convolutions.

  Raises:
    ValueError: if the images are smaller than 32×32.
  """
  checks.positive(width=width)
  checks.unit_interval(dropout=dropout)
  if min(spec.image_shape[:2]) < 32:
    raise ValueError(
      f"'vgg19_bn' halves images five times and needs 32×32 at least, "
      f"'{spec.name}' has {spec.image_shape}; use 'preactresnet18' or 'tiny'."
    )
  return classifier.from_linen(
    VGG19(num_classes=spec.num_classes, width=width, dropout=dropout),
    spec,
    draw=initial.vgg,
    needs_key=dropout > 0,
    arch='vgg19_bn',
    conv_taps=tuple(f'features.{i}' for i, *_ in _places(width)),
    prune_graph=tuple(
      types.PruneGroup(
        norm=(f'features_{i + 1}',),
        conv=(f'features_{i}',),
        channels=channels,
        previous=(f'features_{i}',),
        tap=f'features.{i + 1}',
      )
      for i, channels, _ in _places(width)
    ),
  )


def _places(width: int) -> list[tuple[int, int, bool]]:
  """Per convolution torchvision's index, channels, and if a pool follows."""
  places, index = [], 0
  for depth, factor in _STAGES:
    for i in range(depth):
      places.append((index, factor * width, i == depth - 1))
      index += 3  # convolution, norm, ReLU
    index += 1  # pool
  return places


class VGG19(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the first stage.
    dropout: share of hidden units dropped in training.
  """

  num_classes: int
  width: int = 64
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    for i, channels, is_pooled in _places(self.width):
      x = self._conv_norm_relu(i, channels, x, tap, train)
      x = layers.max_pool(x) if is_pooled else x
    x = tap('penultimate_map', x)
    x = layers.adaptive_average_pool(x, _POOLED)
    x = x.reshape(x.shape[0], -1)
    for i in (0, 3):
      dense = nn.Dense(64 * self.width, name=f'classifier_{i}')
      x = nn.relu(tap.through(f'classifier.{i}', dense, x))
      x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = tap('penultimate', x)
    return nn.Dense(self.num_classes, name='head')(x)

  def _conv_norm_relu(self, i, channels, x, tap, train):
    conv = layers.conv(channels, 3, name=f'features_{i}', use_bias=True)
    x = tap.through(f'features.{i}', conv, x)
    bn = norm.BatchNorm(name=f'features_{i + 1}')
    return nn.relu(tap.through(f'features.{i + 1}', bn, x, train))
