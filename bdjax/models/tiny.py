"""Two convolutions: the network of the toy world, seconds on any machine."""

import jax
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, norm, taps


def tiny(spec: types.DataSpec, *, width: int = 16) -> types.Classifier:
  """Makes conv–BN–ReLU twice, a mean over space and a linear head.

  5,268 weights at width 16, three channels and four classes.

  Args:
    spec: image shape, number of classes and normalization.
    width: channels of the first convolution; the second has twice as many.

  Returns:
    The classifier; places are named 'conv1', 'bn1', 'conv2' and 'bn2'.
  """
  checks.positive(width=width)
  return classifier.from_linen(
    Tiny(num_classes=spec.num_classes, width=width),
    spec,
    draw=initial.torch_default,
    arch='tiny',
    conv_taps=('conv1', 'conv2'),
    prune_graph=tuple(
      types.PruneGroup(
        norm=(f'bn{i}',),
        conv=(f'conv{i}',),
        channels=i * width,
        previous=(f'conv{i}',),
        tap=f'bn{i}',
      )
      for i in (1, 2)
    ),
  )


class Tiny(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of the first convolution.
  """

  num_classes: int
  width: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    for i in (1, 2):
      conv = layers.conv(i * self.width, 3, name=f'conv{i}')
      x = tap.through(f'conv{i}', conv, x)
      bn = norm.BatchNorm(name=f'bn{i}')
      x = nn.relu(tap.through(f'bn{i}', bn, x, train))
    x = tap('penultimate_map', x)
    x = tap('penultimate', layers.spatial_mean(x))
    return nn.Dense(self.num_classes, name='head')(x)
