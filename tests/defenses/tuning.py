"""What the tests of fine-tuning defenses share."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import training, types
from tests import small_nets

NET = small_nets.conv_net(size=8, classes=4, width=4)
KEY = jax.random.key(0)
NUM = 6
IMAGES = small_nets.random_images(0, NUM)
LABELS = np.arange(NUM) % 4


def run(defense, model, extra=None, *, num=NUM, key=KEY, augment=None):
  """The carry and the metrics of a whole defense."""
  return training.run_phases(
    defense.phases,
    types.Carry(model=model, extra=extra or {}),
    {'clean': training.make_feed(IMAGES[:num], LABELS[:num])},
    key,
    augment=augment,
  )


def tune(defense, model, **kwargs):
  """The tuned model; with `num` examples or more per batch, one step each."""
  return run(defense, model, **kwargs)[0].model


def batch_statistics(model):
  """Mean and variance that the first norm sees, by hand from its kernel."""
  x = (np.asarray(IMAGES, np.float64) / 255 - 0.5) / 0.25
  kernel = np.asarray(model.params['stem'], np.float64)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out = sum(
    padded[:, i : i + 8, j : j + 8] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  return out.mean((0, 1, 2)), out.var((0, 1, 2))


def decayed(model, steps):
  """Running statistics of the first norm after equal batches at fixed weights.

  Returns:
    (mean, var): old·decayˢ + batch·(1 − decayˢ).
  """
  kept = small_nets.DECAY**steps
  mean, var = batch_statistics(model)
  old = model.batch_stats['bn0']
  return (
    kept * np.asarray(old['mean']) + (1 - kept) * mean,
    kept * np.asarray(old['var']) + (1 - kept) * var,
  )


def quadratic(curvature) -> types.Classifier:
  """Two classes of which label 0 costs q(w) = ½ Σ aᵢ wᵢ², for every image.

  logits = (−q, log(1 − e^−q)) are log-probabilities, so that the cross-entropy
  of label 0 is q itself.
  """
  curvature = jnp.asarray(curvature, jnp.float32)

  def apply(state, images, *, train=False, edits=None):
    del train, edits
    q = 0.5 * jnp.sum(curvature * state.params['w'] ** 2)
    logits = jnp.stack([-q, jnp.log(-jnp.expm1(-q))])
    return jnp.tile(logits[None], (len(images), 1)), state

  return types.Classifier(init=None, apply=apply, features=None, info=None)


def weights(*values) -> types.ModelState:
  return types.ModelState(
    params={'w': jnp.asarray(values, jnp.float32)}, batch_stats={}
  )
