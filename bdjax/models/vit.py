"""Vision Transformer, laid out as in torchvision.

Normalized images are resized, cut into patches and read as a sequence behind a
class token. Places are named by torchvision's own paths: 'conv_proj' is the
patch layer, its input 'conv_proj.in' the resized images,
'encoder.layers.encoder_layer_0.mlp.0' the first linear layer of the first
encoder layer. In `params` torch's packed `in_proj_weight` and `in_proj_bias`
are one linear layer, `…_self_attention_in_proj`, with queries, keys and values
in this order. There is no last feature map, hence no tap 'penultimate_map', and
there are no BatchNorms.

References: Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for
Image Recognition at Scale, ICLR 2021.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bdjax import checks, types
from bdjax.models import classifier, initial, layers, taps

_HEAD_SIZE = 64  # channels per attention head unless heads are given


def vit_b_16(
  spec: types.DataSpec,
  *,
  width: int = 768,
  depth: int = 12,
  heads: int | None = None,
  image_size: int = 224,
  patch_size: int = 16,
) -> types.Classifier:
  """Makes ViT-B/16; 86,567,656 weights for 1000 classes.

  Whatever the images' size, they are resized first, bilinearly with half-pixel
  centers: 32×32 images cost as much as 224×224 ones, 197 tokens each.

  Initial weights as torchvision draws them: patch layer normal of variance
  1 / fan_in; linear layers of the encoder uniform in ±√(6 / (fan_in + fan_out))
  with biases of deviation 1e-6, in attention 0, and its outputs by torch's
  default; positions normal of deviation 0.02, the class token 0.

  Divergences: torchvision's head starts at 0; here, as in the benchmark, which
  replaces it, it starts by torch's default. The benchmark starts from
  ImageNet's weights. Images larger than `image_size` are not smoothed before
  they are made smaller.

  Args:
    spec: image shape, number of classes and normalization.
    width: channels of a token; hidden layers have four times as many.
    depth: encoder layers.
    heads: attention heads, a divisor of `width`; None = width / 64, at least 1.
    image_size: height and width that images are resized to.
    patch_size: height and width of a patch, a divisor of `image_size`.

  Returns:
    The classifier; `info.conv_taps` is empty: name the taps that methods on
    convolutions are to look at.

  Raises:
    ValueError: for sizes that are not positive or do not divide one another.
  """
  checks.positive(
    width=width,
    depth=depth,
    heads=heads,
    image_size=image_size,
    patch_size=patch_size,
  )
  heads = max(width // _HEAD_SIZE, 1) if heads is None else heads
  if width % heads:
    raise ValueError(
      f'`width={width}` cannot be shared by {heads} attention heads; take a '
      'multiple of that number or set `heads`.'
    )
  if image_size % patch_size:
    raise ValueError(
      f'`image_size={image_size}` is no multiple of `patch_size={patch_size}`.'
    )
  net = ViT(
    num_classes=spec.num_classes,
    width=width,
    depth=depth,
    heads=heads,
    image_size=image_size,
    patch_size=patch_size,
  )
  return classifier.from_linen(
    net, spec, draw=initial.drawn(_law), arch='vit_b_16'
  )


def _law(path, shape, kernel) -> initial.Law:
  module = path[0]
  if module == 'encoder_pos_embedding':
    return initial.Law('normal', 0.02)
  if kernel is None or module == 'head':
    torch = initial.uniform_in
    return initial.rule(torch, torch, torch)(path, shape, kernel)
  if path[-1] == 'bias':
    deviation = 1e-6 if '_mlp_' in module else 0.0
    return initial.Law('normal', deviation) if deviation else initial.zero(())
  if module == 'conv_proj':
    return initial.Law('normal', initial.he_in(kernel).size / 2**0.5)
  if module.endswith('out_proj'):
    return initial.uniform_in(kernel)
  return initial.Law('uniform', (6 / sum(kernel)) ** 0.5)


class ViT(nn.Module):
  """The network on normalized images.

  Attributes:
    num_classes: width of the logits.
    width: channels of a token.
    depth: encoder layers.
    heads: attention heads.
    image_size: height and width that images are resized to.
    patch_size: height and width of a patch.
  """

  num_classes: int
  width: int = 768
  depth: int = 12
  heads: int = 12
  image_size: int = 224
  patch_size: int = 16

  @nn.compact
  def __call__(self, x: jax.Array, tap: taps.Taps, train: bool) -> jax.Array:
    """Logits [b, n] of normalized images [b, h, w, c]."""
    del train
    x = self._with_class_token(self._patches(x, tap))
    x += self.param(
      'encoder_pos_embedding',
      nn.initializers.normal(0.02),
      (1, *x.shape[1:]),
    )
    for i in range(self.depth):
      place = f'encoder.layers.encoder_layer_{i}'
      x = tap(place, self._encode(place, x, tap))
    x = layers.through_layer_norm('encoder.ln', x, tap)
    x = tap('penultimate', x[:, 0])
    return nn.Dense(self.num_classes, name='head')(x)

  def _patches(self, x, tap):
    """Tokens [b, t, width] of the resized images, row by row."""
    shape = (len(x), self.image_size, self.image_size, x.shape[-1])
    x = jax.image.resize(x, shape, 'bilinear', antialias=False)
    x = layers.through_conv(
      'conv_proj',
      x,
      tap,
      self.width,
      self.patch_size,
      self.patch_size,
      padding=0,
      use_bias=True,
    )
    return x.reshape(len(x), -1, self.width)

  def _with_class_token(self, x):
    shape = (1, 1, self.width)
    token = self.param('class_token', nn.initializers.zeros, shape)
    token = jnp.broadcast_to(token, (len(x), *shape[1:]))
    return jnp.concatenate([token, x], 1)

  def _encode(self, place, x, tap):
    """Attention and two linear layers, each behind a norm and added."""
    out = layers.through_layer_norm(f'{place}.ln_1', x, tap)
    x += tap.through(
      f'{place}.self_attention',
      lambda x: self._attend(f'{place}.self_attention', x),
      out,
    )
    out = layers.through_layer_norm(f'{place}.ln_2', x, tap)
    out = layers.through_dense(f'{place}.mlp.0', out, tap, 4 * self.width)
    out = nn.gelu(out, approximate=False)
    return x + layers.through_dense(f'{place}.mlp.3', out, tap, self.width)

  def _attend(self, place, x):
    b, t, d = x.shape
    packed = nn.Dense(3 * d, name=layers.flat(f'{place}.in_proj'))(x)
    packed = packed.reshape(b, t, 3, self.heads, d // self.heads)
    query, key, value = jnp.moveaxis(packed, 2, 0)
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    weights = nn.softmax(scores * (d // self.heads) ** -0.5)
    out = jnp.einsum('bhqk,bkhd->bqhd', weights, value).reshape(b, t, d)
    return nn.Dense(d, name=layers.flat(f'{place}.out_proj'))(out)
