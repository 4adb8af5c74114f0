"""Inverted residual blocks with squeeze-excitation, those of mobile networks.

A 1×1 convolution widens, a depthwise one looks around, squeeze-excitation
weighs the channels and a 1×1 convolution narrows; where shapes allow, the input
is added. Places are torchvision's: within a block, 'block.0.0' is the first
convolution and 'block.0.1' its norm; squeeze-excitation has 'fc1' and 'fc2'.

References: Sandler et al., MobileNetV2: Inverted Residuals and Linear
Bottlenecks, CVPR 2018. Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from bdjax import types
from bdjax.models import layers, taps

Activation = Callable[[jax.Array], jax.Array]


class Block(NamedTuple):
  """Static facts of one block.

  Attributes:
    place: torchvision's path, such as 'features.4'.
    inputs: channels that come in.
    expanded: channels of the depthwise convolution.
    outputs: channels that go out.
    size: height and width of its kernel.
    stride: its stride.
    squeezed: channels inside of squeeze-excitation; 0 = none.
  """

  place: str
  inputs: int
  expanded: int
  outputs: int
  size: int
  stride: int
  squeezed: int

  @property
  def is_residual(self) -> bool:
    """Whether the input is added."""
    return self.stride == 1 and self.inputs == self.outputs

  @property
  def widen(self) -> str | None:
    """Place of the first convolution; None where there is nothing to widen."""
    return self._part(0) if self.expanded != self.inputs else None

  @property
  def look(self) -> str:
    """Place of the depthwise convolution."""
    return self._part(1)

  @property
  def squeeze(self) -> str | None:
    """Place of squeeze-excitation; None where there is none."""
    return self._part(2) if self.squeezed else None

  @property
  def narrow(self) -> str:
    """Place of the last convolution."""
    return self._part(3 if self.squeezed else 2)

  def _part(self, i: int) -> str:
    return f'{self.place}.block.{i - (self.expanded == self.inputs)}'


def conv_places(block: Block) -> Iterator[tuple[str, int]]:
  """Places and channels of a block's convolutions with norms, in order."""
  if block.widen:
    yield block.widen, block.expanded
  yield block.look, block.expanded
  yield block.narrow, block.outputs


def prune_group(place: str, channels: int) -> types.PruneGroup:
  """That of a convolution and the norm behind it."""
  conv, norm = layers.flat(f'{place}.0'), layers.flat(f'{place}.1')
  return types.PruneGroup((norm,), (conv,), channels, (conv,), f'{place}.1')


class Pass(NamedTuple):
  """What all blocks of one forward pass have in common.

  Attributes:
    tap: the recorder.
    train: whether norms use the batch.
    norm: options of the norms.
    excitation: activation inside of squeeze-excitation, and its gate.
  """

  tap: taps.Taps
  train: bool
  norm: dict[str, float]
  excitation: tuple[Activation, Activation]

  def conv_norm(
    self,
    place: str,
    x: jax.Array,
    features: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
  ) -> jax.Array:
    """A convolution and its norm, called within a compact module."""
    x = layers.through_conv(
      f'{place}.0', x, self.tap, features, size, stride, groups=groups
    )
    return layers.through_norm(
      f'{place}.1', x, self.tap, self.train, **self.norm
    )

  def block(
    self, facts: Block, x: jax.Array, activation: Activation, rate: float = 0.0
  ) -> jax.Array:
    """One block, called within a compact module.

    Args:
      facts: what it is.
      x: [b, h, w, inputs].
      activation: behind the first two convolutions.
      rate: probability of leaving out all but the input, in training.

    Returns:
      [b, h / stride, w / stride, outputs].
    """
    out, d = x, facts.expanded
    if facts.widen:
      out = activation(self.conv_norm(facts.widen, out, d, 1))
    out = self.conv_norm(facts.look, out, d, facts.size, facts.stride, d)
    out = activation(out)
    if facts.squeeze:
      out = layers.squeeze_excite(
        facts.squeeze, out, self.tap, facts.squeezed, *self.excitation
      )
    out = self.conv_norm(facts.narrow, out, facts.outputs, 1)
    if facts.is_residual:
      out = x + layers.drop_examples(out, rate, self.train)
    return self.tap(facts.place, out)
