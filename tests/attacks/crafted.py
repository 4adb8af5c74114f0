"""What tests of crafted attacks share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import models, types
from tests.eval import linear

KEY = jax.random.key(0)
SPEC = linear.spec(shape=(8, 8, 3), num_classes=4)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.int32) % 4


@functools.cache
def network() -> tuple[types.Classifier, types.ModelState]:
  """A tiny network with random weights."""
  classifier = models.make('tiny', SPEC, width=4)
  return classifier, classifier.init(KEY)


def batch(images=IMAGES, labels=LABELS) -> types.Batch:
  index = jnp.arange(len(labels))
  return {
    'image': jnp.asarray(images) / 255,
    'label': jnp.asarray(labels),
    'index': index,
    'mask': jnp.ones(len(labels), bool),
  }


def stamp(attack, state, images=IMAGES) -> np.ndarray:
  """The bytes of stamped byte images."""
  got = attack.stamp(
    state, jnp.asarray(images) / 255, KEY, np.arange(len(images))
  )
  levels = 255 * np.asarray(got)
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
  assert levels.min() >= 0 and levels.max() <= 255.001
  return np.round(levels).astype(np.uint8)
