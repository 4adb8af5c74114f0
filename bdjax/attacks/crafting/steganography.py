"""Training of a network that hides bits in images (for SSBA).

With random bits m in every step, encoder E, decoder D and σ the logistic
function:

  min over E and D of  BCE(σ(D(E(x, m))), m) + λ(s) · MSE(E(x, m), x)
  λ(s) = clip(w · (s − a) / b, 0, w)

where s counts the steps since a batch had 90 % of its bits right for the first
time, and λ = 0 before. First the bits get through, then the picture comes back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdjax import checks, keys, models, optim, types
from bdjax.attacks.crafting import weights
from bdjax.attacks.triggers import levels

_ENOUGH = 0.9  # bit accuracy that starts the clock of λ
_NEVER = -1


class Trained(NamedTuple):
  """The pair of networks, and how well held-out images went.

  Attributes:
    params: {'encoder', 'decoder'}.
    bit_accuracy: share of random bits read back from stored images, of 8 bits.
    psnr: peak signal-to-noise ratio of stored images, in dB.
    curves: 'loss', 'bit_accuracy', 'mse' and 'mse_weight' of every step.
  """

  params: types.PyTree
  bit_accuracy: float
  psnr: float
  curves: types.Metrics


def train(
  key: jax.Array,
  net: models.StegaStamp,
  images: np.ndarray,
  *,
  epochs: int,
  batch_size: int,
  lr: float,
  mse_weight: float,
  ramp_start: int,
  ramp_length: int,
) -> Trained:
  """Trains encoder and decoder.

  Args:
    key: typed key of weights, bits and orders.
    net: the networks.
    images: uint8 [N, h, w, c]; a tenth, at most 1000, is held out.
    epochs: passes over the others.
    batch_size: images per step.
    lr: of Adam.
    mse_weight: w, the largest λ.
    ramp_start: a, in steps.
    ramp_length: b, in steps.

  Returns:
    The networks and what they reach.

  Raises:
    ValueError: if a count or the rate is not positive.
  """
  checks.positive(
    epochs=epochs, batch_size=batch_size, lr=lr, ramp_length=ramp_length
  )
  checks.non_negative(mse_weight=mse_weight, ramp_start=ramp_start)
  schedule = lambda since: ramp(since, mse_weight, ramp_start, ramp_length)
  used, held_out = weights.hold_out(keys.stream(key, 'held_out'), len(images))
  params, _, curves = weights.train(
    keys.stream(key, 'training'),
    net.init(keys.stream(key, 'init')),
    jnp.int32(_NEVER),
    images,
    used,
    _objective(net, schedule),
    optim.adam(optim.constant(lr)),
    num_epochs=epochs,
    batch_size=batch_size,
  )
  judge = keys.stream(key, 'judge')
  accuracy, mse = _judge(net, params, np.asarray(images[held_out]), judge)
  psnr = -10 * float(jnp.log10(jnp.maximum(mse, 1e-12)))
  return Trained(params, float(accuracy), psnr, curves)


def ramp(
  since: jax.Array | int,
  weight: float,
  start: int,
  length: int,
) -> jax.Array:
  """λ after so many steps; 0 for −1, which means never.

  Args:
    since: s, steps since enough bits were right.
    weight: w.
    start: a.
    length: b.

  Returns:
    float32 [].
  """
  since = jnp.asarray(since, jnp.float32)
  risen = jnp.clip(weight * (since - start) / length, 0, weight)
  return jnp.where(since < 0, 0.0, risen)


def _objective(net: models.StegaStamp, schedule):
  """The loss of `training.fit`; `since` is what it carries along."""

  def objective(params, since, batch, clock):
    images = batch['image']
    key = keys.stream(clock.key, 'bits')
    bits = _random_bits(key, (len(images), net.num_bits))
    hidden = net.hide(params['encoder'], images, bits)
    logits = net.reveal(params['decoder'], hidden)
    bce = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, bits))
    mse, weight = jnp.mean((hidden - images) ** 2), schedule(since)
    accuracy = jnp.mean(_right(logits, bits))
    begins = jnp.where(accuracy > _ENOUGH, 0, _NEVER)
    since = jnp.where(since == _NEVER, begins, since + 1)
    metrics = {'bit_accuracy': accuracy, 'mse': mse, 'mse_weight': weight}
    return bce + weight * mse, (metrics, since)

  return objective


def _judge(net, params, images: np.ndarray, key):
  """Bit accuracy and MSE of images that have been through 8 bits."""

  @jax.jit
  def judge(params, images, bits):
    def one(image_and_bits):
      image, bits = image_and_bits
      image = levels.to_image(image)
      hidden = net.hide(params['encoder'], image[None], bits[None])
      stored = levels.stored(hidden, 'round')
      right = _right(net.reveal(params['decoder'], stored)[0], bits)
      return jnp.mean(right), jnp.mean((stored[0] - image) ** 2)

    found = jax.lax.map(one, (images, bits), batch_size=64)
    return jax.tree.map(jnp.mean, found)

  bits = _random_bits(key, (len(images), net.num_bits))
  return judge(params, jnp.asarray(images), bits)


def _right(logits: jax.Array, bits: jax.Array) -> jax.Array:
  return ((logits > 0) == (bits > 0.5)).astype(jnp.float32)


def _random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.bernoulli(key, 0.5, shape).astype(jnp.float32)
