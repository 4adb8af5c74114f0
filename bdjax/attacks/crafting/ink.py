"""Training of networks that hide colored edges in images (for PoisonInk).

With x an image, e(x, c) its edges in color c on white, T a random change,

  min over H and R of  10⁴ · (MSE(H(x, e), x) + 13 · edge + back + 100 · clean)
  edge, back = MSE of R(T(H)) from e(T(x), c), on the edges of T(x) and off them
  clean      = MSE of R(T(x)) from white

with a random color per image and step. Stage by stage, each from where the last
one ended: T is the identity; a random crop to 7/8 of the sides, enlarged again,
for half of the images; a mirror image for half of them.

BN: train-BN in H, its running statistics are handed on; R has instance norms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, data, keys, models, optim, types
from bdjax.attacks.crafting import weights
from bdjax.attacks.triggers import edges, levels

CHANGES = ('none', 'crop', 'flip')
_SCALE = 1e4
_EDGE, _BACK, _CLEAN = 13.0, 1.0, 100.0
_COLORS = (40, 80, 120, 160, 200)  # of each channel
_CROP = 7 / 8
_B1 = 0.5


class Trained(NamedTuple):
  """The networks, and how well held-out images went.

  Attributes:
    params: {'hide', 'reveal'}.
    stats: running statistics of `hide`.
    psnr: peak signal-to-noise ratio of stored images, in dB.
    edge_error: root mean square error of the color that is revealed on edges.
    clean_error: the same of white, revealed from images without ink.
    curves: metrics of every stage and step.
  """

  params: types.PyTree
  stats: types.PyTree
  psnr: float
  edge_error: float
  clean_error: float
  curves: dict[str, types.Metrics]


def train(
  key: jax.Array,
  net: models.InkNetworks,
  images: np.ndarray,
  *,
  color: tuple[int, ...],
  edge_level: float,
  stages: tuple[str, ...],
  epochs: int,
  batch_size: int,
  lr: float,
  decay_epochs: int,
) -> Trained:
  """Trains both networks.

  Args:
    key: typed key of weights, colors, changes and orders.
    net: the networks.
    images: uint8 [N, h, w, c]; a tenth, at most 1000, is held out.
    color: grey levels [c] that held-out images are judged with.
    edge_level: what an edge is, in grey levels.
    stages: names of `CHANGES`, one after another.
    epochs: passes of each stage.
    batch_size: images per step.
    lr: of Adam; a tenth of it after every `decay_epochs`.
    decay_epochs: see `lr`.

  Returns:
    The networks and what they reach.

  Raises:
    ValueError: if a count or the rate is not positive, or a stage unknown.
  """
  checks.positive(
    epochs=epochs, batch_size=batch_size, lr=lr, decay_epochs=decay_epochs
  )
  for stage in stages:
    checks.one_of(CHANGES, stages=stage)
  used, held_out = weights.hold_out(keys.stream(key, 'held_out'), len(images))
  params, stats = net.init(keys.stream(key, 'init')), net.init_stats()
  schedule = optim.step_epochs(lr, range(decay_epochs, epochs, decay_epochs))
  curves = {}
  for i, stage in enumerate(stages):
    params, stats, curves[stage] = weights.train(
      keys.at(keys.stream(key, 'stages'), i),
      params,
      stats,
      images,
      used,
      _objective(net, edge_level, _change(stage, images.shape[1:])),
      optim.adam(schedule, b1=_B1),
      num_epochs=epochs,
      batch_size=batch_size,
    )
  ink = jnp.asarray(color, jnp.float32) / 255
  found = _judge(net, params, stats, images[held_out], ink, edge_level)
  mse, edge, clean = (float(x) for x in found)
  psnr = -10 * float(np.log10(max(mse, 1e-12)))
  return Trained(params, stats, psnr, edge**0.5, clean**0.5, curves)


def _objective(net: models.InkNetworks, edge_level: float, change):
  """The loss of `training.fit`; H's statistics are what it carries along."""

  def objective(params, stats, batch, clock):
    images = batch['image']
    key = keys.stream(clock.key, 'change')
    color = _random_colors(keys.stream(clock.key, 'color'), images)
    secrets = edges.inked(images, color, edge_level)
    hidden, stats = net.hide(params['hide'], stats, images, secrets, True)
    seen = change(jnp.concatenate([hidden, images]), key)
    revealed = jnp.split(net.reveal(params['reveal'], seen), 2)
    shown = jax.lax.stop_gradient(seen[len(images) :])  # T(x)
    parts = {
      'hide': jnp.mean((hidden - images) ** 2),
      **_revealed_errors(revealed, shown, color, edge_level),
    }
    loss = parts['hide'] + _EDGE * parts['edge'] + _BACK * parts['back']
    return _SCALE * (loss + _CLEAN * parts['clean']), (parts, stats)

  return objective


def _revealed_errors(revealed, images, color, edge_level: float):
  """Mean squared errors of what was revealed from inked and clean images."""
  inked, clean = revealed
  is_edge = edges.is_edge(images, edge_level)
  error = (inked - edges.inked(images, color, edge_level)) ** 2
  return {
    'edge': _mean_where(error, is_edge),
    'back': _mean_where(error, ~is_edge),
    'clean': jnp.mean((clean - 1) ** 2),
  }


def _mean_where(values: jax.Array, mask: jax.Array) -> jax.Array:
  """The mean over some pixels, 0 where there are none."""
  count = jnp.maximum(jnp.sum(mask), 1) * values.shape[-1]
  return jnp.sum(jnp.where(mask, values, 0)) / count


def _random_colors(key: jax.Array, images: jax.Array) -> jax.Array:
  """One color per image, [b, c]."""
  shape = len(images), images.shape[-1]
  return jax.random.choice(key, jnp.asarray(_COLORS), shape) / 255.0


def _change(
  stage: str, image_shape: tuple[int, int, int]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """T: (images [2b, h, w, c], key) -> images; both halves change alike."""
  if stage == 'none':
    return lambda images, key: images
  change = _crop(image_shape) if stage == 'crop' else _mirror

  def half_of_them(images, key):
    num = len(images) // 2
    which, how = jax.random.split(key)
    changed = jax.random.bernoulli(which, 0.5, (num,))
    twice = jnp.concatenate([changed, changed])[:, None, None, None]
    return jnp.where(twice, change(images, how), images)

  return half_of_them


def _mirror(images: jax.Array, key: jax.Array) -> jax.Array:
  del key
  return images[:, :, ::-1]


def _crop(image_shape: tuple[int, int, int]):
  """A random part of 7/8 of the sides, enlarged bilinearly."""
  places = [_enlarged(side) for side in image_shape[:2]]

  def crop(images, key):
    num, draws = len(images) // 2, []
    for each, (at, room) in zip(jax.random.split(key), places, strict=True):
      start = jax.random.randint(each, (num, 1), 0, room + 1)
      draws.append(jnp.concatenate([start, start]) + at[None])
    rows, columns = draws
    shape = (2 * num, *images.shape[1:3])
    return data.bilinear(
      images,
      jnp.broadcast_to(rows[:, :, None], shape),
      jnp.broadcast_to(columns[:, None, :], shape),
    )

  return crop


def _enlarged(side: int) -> tuple[np.ndarray, int]:
  """Where a crop at 0 is read to fill the side, and how far it can move."""
  part = max(round(_CROP * side), 1)
  at = (np.arange(side) + 0.5) * part / side - 0.5
  return np.clip(at, 0, part - 1).astype(np.float32), side - part


def _judge(net, params, stats, images: np.ndarray, color, edge_level: float):
  """MSE of stored images, of revealed ink on edges, of revealed white."""

  @jax.jit
  def judge(params, stats, images):
    def one(image):
      x = levels.to_image(image)[None]
      secret = edges.inked(x, color[None], edge_level)
      hidden, _ = net.hide(params['hide'], stats, x, secret)
      stored = levels.stored(hidden, 'round')
      revealed = net.reveal(params['reveal'], jnp.concatenate([stored, x]))
      errors = _revealed_errors(
        jnp.split(revealed, 2), x, color[None], edge_level
      )
      return jnp.mean((stored - x) ** 2), errors['edge'], errors['clean']

    found = jax.lax.map(one, images, batch_size=64)
    return jax.tree.map(jnp.mean, found)

  return judge(params, stats, jnp.asarray(images))
