"""What the tests of trigger inversion and of the defenses on it share."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp

from bdjax import models, training, types
from tests.defenses import tuning

CLOCK = types.Clock(tuning.KEY, jnp.int32(0), jnp.int32(0), 4, 4)
# The least that `training.GeneratorHParams` can be asked for.
SHORT = dict(
  batch_size=tuning.NUM,
  pretrain_epochs=1,
  mask_epochs=1,
  attack_epochs=1,
  width=2,
  levels=1,
)
ROUNDS = dict(rounds=2, unlearn_epochs=2, **SHORT)


def batch() -> types.Batch:
  """All images of `tuning`, as a step gets them."""
  return {
    'image': jnp.asarray(tuning.IMAGES, jnp.float32) / 255,
    'label': jnp.asarray(tuning.LABELS, jnp.int32),
    'index': jnp.arange(tuning.NUM),
    'mask': jnp.ones(tuning.NUM, bool),
  }


@functools.cache
def model(seed: int = 0) -> types.ModelState:
  return tuning.NET.init(jax.random.key(seed))


def phases(make, net, hp, change):
  """Phases of a defense, `change` of images in place of its generator."""
  unet = models.UNet(lambda key: {}, lambda params, x: change(x), 1)
  made = lambda classifier, hp: unet
  with mock.patch.object(training, 'generator', made):
    return make(net, hp).phases
