"""Models: image classifiers as pure functions; the only room that knows flax.

`make` builds a `types.Classifier` by name. `forward_mode` is the context in
which models can be differentiated by `jax.jvp` and its kin.
"""

import functools
import inspect

from bdjax import checks, registry, types
from bdjax.models.autoencoder import Autoencoder as Autoencoder
from bdjax.models.autoencoder import autoencoder as autoencoder
from bdjax.models.classifier import from_functions as from_functions
from bdjax.models.classifier import from_linen as from_linen
from bdjax.models.classifier import from_nnx as from_nnx
from bdjax.models.conv import forward_mode as forward_mode
from bdjax.models.convnext import convnext_tiny
from bdjax.models.densenet import densenet161
from bdjax.models.efficientnet import efficientnet_b3
from bdjax.models.generators import Generator as Generator
from bdjax.models.generators import encoder_decoder as encoder_decoder
from bdjax.models.generators import skip_autoencoder as skip_autoencoder
from bdjax.models.generators import strided_autoencoder as strided_autoencoder
from bdjax.models.ink import InkNetworks as InkNetworks
from bdjax.models.ink import ink_networks as ink_networks
from bdjax.models.mobilenet import mobilenet_v3_large
from bdjax.models.polarizer import FORMS as FORMS
from bdjax.models.polarizer import Form as Form
from bdjax.models.polarizer import Polarizer as Polarizer
from bdjax.models.polarizer import polarizer as polarizer
from bdjax.models.preactresnet import preactresnet18
from bdjax.models.precision import in_dtype as in_dtype
from bdjax.models.resnet import resnet18, resnet50
from bdjax.models.stegastamp import StegaStamp as StegaStamp
from bdjax.models.stegastamp import stegastamp as stegastamp
from bdjax.models.tiny import tiny
from bdjax.models.unet import UNet as UNet
from bdjax.models.unet import unet as unet
from bdjax.models.vgg import vgg19_bn
from bdjax.models.vit import vit_b_16
from bdjax.models.wide_resnet import wrn28_2

REGISTRY = {
  'preactresnet18': preactresnet18,
  'tiny': tiny,
  'vgg19_bn': vgg19_bn,
  'resnet18': resnet18,
  'resnet50': resnet50,
  'wrn28_2': wrn28_2,
  'convnext_tiny': convnext_tiny,
  'vit_b_16': vit_b_16,
  'densenet161': densenet161,
  'mobilenet_v3_large': mobilenet_v3_large,
  'efficientnet_b3': efficientnet_b3,
}


def make(
  arch: str, spec: types.DataSpec, *, dtype: str = 'float32', **options
) -> types.Classifier:
  """Makes a classifier by name.

  Args:
    arch: registry key of the architecture.
    spec: image shape, number of classes and normalization.
    dtype: type of the activations, see `in_dtype`.
    **options: keyword arguments of the architecture, such as `width`.

  Returns:
    The classifier; the same object for equal arguments, so that programs
    compiled for it are found again.

  Raises:
    UnknownName: for an architecture, or an option, that does not exist; with
      the nearest one that does.
    ValueError: for a type that nothing is computed in.

  Example:
    >>> import jax
    >>> from bdjax import models, types
    >>> spec = types.DataSpec(
    ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
    ...   mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    ... )
    >>> model = models.make('tiny', spec)
    >>> state = model.init(jax.random.key(0))
    >>> logits, _ = model.apply(state, jax.numpy.ones((2, 8, 8, 3)))
    >>> logits.shape
    (2, 4)
  """
  factory = registry.get(REGISTRY, arch, 'architecture')
  known = [
    p.name
    for p in inspect.signature(factory).parameters.values()
    if p.kind is p.KEYWORD_ONLY
  ]
  for name in options:
    if name not in known:
      raise registry.UnknownName(
        f"Architecture '{arch}' has no option '{name}'. "
        f'{checks.suggest(name, known)}'
      )
  return _make(arch, spec, dtype, **options)


@functools.cache
def _make(arch, spec, dtype, **options) -> types.Classifier:
  return in_dtype(REGISTRY[arch](spec, **options), dtype)
