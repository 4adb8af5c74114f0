"""DenseNet-161, laid out as in torchvision.

Every layer of a dense block sees the maps of all layers before it. Places are
named by torchvision's own paths: 'features.conv0', 'features.norm0',
'features.denseblock1.denselayer1.conv1', 'features.transition1.conv',
'features.norm5'; besides these 'stage1' to 'stage4', the outputs of the dense
blocks.

References: Huang et al., Densely Connected Convolutional Networks, CVPR 2017.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, taps

_DEPTHS = (6, 12, 36, 24)
_BOTTLENECK = 4
_SMALLEST = 32


def densenet161(
  spec: types.DataSpec, *, width: int = 96, blocks: int | None = None
) -> types.Classifier:
  """Makes DenseNet-161; 28,681,000 weights for 1000 classes.

  Initial weights as torchvision draws them: normal of variance 2 / fan_in for
  convolutions; torch's default for the head, whose bias is 0.

  Most norms see maps of several layers side by side. These have no producing
  convolution in `info.prune_graph`, and none `previous` that fits their
  channels: methods that pair norms with convolutions do not work here.

  Args:
    spec: image shape, at least 32×32, number of classes and normalization.
    width: channels of the stem, even; every layer adds half as many.
    blocks: most layers of a dense block; None = 6, 12, 36 and 24.

  Returns:
    The classifier; `info.conv_taps` are all convolutions but the stem.

  Raises:
    ValueError: for a width that is not positive and even, blocks that are not
      positive, or images smaller than 32×32.
  """
  checks.positive(width=width, blocks=blocks)
  if width % 2:
    raise ValueError(f'`width={width}` must be even: layers add half of it.')
  if min(spec.image_shape[:2]) < _SMALLEST:
    raise ValueError(
      f"'densenet161' divides the sides of images by 32; '{spec.name}' has "
      f"{spec.image_shape}. Use 'preactresnet18', 'resnet18' or 'tiny'."
    )
  depths = tuple(min(n, blocks or n) for n in _DEPTHS)
  return classifier.from_linen(
    DenseNet(num_classes=spec.num_classes, width=width, depths=depths),
    spec,
    draw=initial.drawn(initial.rule(initial.he_in, initial.uniform_in)),
    arch='densenet161',
    conv_taps=_conv_taps(depths),
    prune_graph=_prune_graph(width, depths),
  )


def _layer(block: int, i: int) -> str:
  """Torchvision's path of a layer; both are counted from 1."""
  return f'features.denseblock{block}.denselayer{i}'


def _conv_taps(depths: tuple[int, ...]) -> tuple[str, ...]:
  places = []
  for block, depth in enumerate(depths, 1):
    for i in range(1, depth + 1):
      places += [f'{_layer(block, i)}.conv1', f'{_layer(block, i)}.conv2']
    if block < len(depths):
      places.append(f'features.transition{block}.conv')
  return tuple(places)


def _prune_graph(
  width: int, depths: tuple[int, ...]
) -> tuple[types.PruneGroup, ...]:
  def group(place, channels, conv=None):
    path = (layers.flat(conv),) if conv else None
    norm = (layers.flat(place),)
    return types.PruneGroup(norm, path, channels, path, place)

  growth = width // 2
  groups = [group('features.norm0', width, 'features.conv0')]
  for block, depth in enumerate(depths, 1):
    for i in range(1, depth + 1):
      place = _layer(block, i)
      conv = f'{place}.conv1'
      groups += [
        group(f'{place}.norm1', width),
        group(f'{place}.norm2', _BOTTLENECK * growth, conv),
      ]
      width += growth
    if block < len(depths):
      groups.append(group(f'features.transition{block}.norm', width))
      width //= 2
  return (*groups, group('features.norm5', width))


class DenseNet(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the stem.
    depths: layers per dense block.
  """

  num_classes: int
  width: int = 96
  depths: tuple[int, ...] = _DEPTHS

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""

    def norm_relu(place, x):
      return nn.relu(layers.through_norm(place, x, tap, train))

    x = layers.through_conv('features.conv0', x, tap, self.width, 7, 2)
    x = layers.max_pool3(norm_relu('features.norm0', x))
    for block, depth in enumerate(self.depths, 1):
      for i in range(1, depth + 1):
        new = self._new_maps(_layer(block, i), x, tap, norm_relu)
        x = jnp.concatenate([x, new], -1)
      x = tap(f'stage{block}', x)
      if block < len(self.depths):
        place = f'features.transition{block}'
        x = norm_relu(f'{place}.norm', x)
        half = x.shape[-1] // 2
        x = layers.through_conv(f'{place}.conv', x, tap, half, 1)
        x = layers.average_pool(x)
    x = tap('penultimate_map', norm_relu('features.norm5', x))
    x = tap('penultimate', layers.spatial_mean(x))
    return nn.Dense(self.num_classes, name='head')(x)

  def _new_maps(self, place, x, tap, norm_relu):
    """Half the stem's channels out of all maps so far."""
    growth = self.width // 2
    x = norm_relu(f'{place}.norm1', x)
    x = layers.through_conv(f'{place}.conv1', x, tap, _BOTTLENECK * growth, 1)
    x = norm_relu(f'{place}.norm2', x)
    return layers.through_conv(f'{place}.conv2', x, tap, growth, 3)
