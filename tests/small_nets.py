"""Classifiers written out by hand, small enough for closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import types
from bdjax.models import taps as taps_lib

BN_EPS = 1e-5
DECAY = 0.9


def _normal(key):
  """NumPy's normal draws, which need no compilation: shape -> array."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  return lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)


def _info(arch, size, classes, taps, norms=(), head=('head',)):
  return types.ClassifierInfo(
    arch=arch,
    num_classes=classes,
    image_shape=(size, size, 3),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    taps=('input', *taps, 'penultimate', 'logits'),
    conv_taps=taps,
    head_path=head,
    norm_paths=norms,
    prune_graph=(),
    norm_decay=DECAY,
  )


def _finish(init, forward, info):
  def run(state, images, train, edits):
    tap = taps_lib.Taps(edits)
    logits, stats = forward(state, tap('input', images), train, tap)
    return tap('logits', logits), stats, tap.seen

  def apply(state, images, *, train=False, edits=None):
    logits, stats, _ = run(state, images, train, edits)
    return logits, types.ModelState(params=state.params, batch_stats=stats)

  def features(state, images, *, train=False, edits=None):
    return run(state, images, train, edits)[-1]

  return types.Classifier(init, apply, features, info)


def linear_net(size: int = 4, classes: int = 2) -> types.Classifier:
  """logits = x·w + b on raw pixels."""

  def init(key):
    w = _normal(key)(size * size * 3, classes)
    return types.ModelState(
      params={'head': {'w': w, 'b': jnp.zeros(classes)}}, batch_stats={}
    )

  def forward(state, images, train, tap):
    del train
    flat = tap('penultimate', images.reshape(images.shape[0], -1))
    head = state.params['head']
    return flat @ head['w'] + head['b'][None], {}

  return _finish(init, forward, _info('linear', size, classes, ()))


def _conv(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _norm(x, params, stats, train):
  new = stats
  if train:
    mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    new = {
      'mean': DECAY * stats['mean'] + (1 - DECAY) * mean,
      'var': DECAY * stats['var'] + (1 - DECAY) * var,
    }
    stats = {'mean': mean, 'var': var}
  spread = jnp.sqrt(stats['var'] + BN_EPS)[None, None, None]
  x = (x - stats['mean'][None, None, None]) / spread
  scale, bias = params['scale'], params['bias']
  return x * scale[None, None, None] + bias[None, None, None], new


def conv_net(
  size: int = 8, classes: int = 4, width: int = 8
) -> types.Classifier:
  """stem -> BN -> ReLU -> conv1 -> BN -> ReLU -> conv2 -> mean -> linear."""
  shapes = {
    'stem': (3, 3, 3, width),
    'conv1': (3, 3, width, width),
    'conv2': (3, 3, width, 2 * width),
  }

  def init(key):
    normal = _normal(key)
    params = {n: normal(*s) / (9 * s[2]) ** 0.5 for n, s in shapes.items()}
    for name in ('bn0', 'bn1'):
      params[name] = {'scale': jnp.ones(width), 'bias': jnp.zeros(width)}
    params['head'] = normal(2 * width, classes)
    stats = lambda: {'mean': jnp.zeros(width), 'var': jnp.ones(width)}
    return types.ModelState(
      params=params, batch_stats={'bn0': stats(), 'bn1': stats()}
    )

  def forward(state, images, train, tap):
    p, s = state.params, state.batch_stats
    conv = lambda name, x: tap.through(name, _conv, x, p[name])
    x = _conv((images - 0.5) / 0.25, p['stem'])
    x, bn0 = _norm(x, p['bn0'], s['bn0'], train)
    x, bn1 = _norm(conv('conv1', jax.nn.relu(x)), p['bn1'], s['bn1'], train)
    x = tap('penultimate_map', conv('conv2', jax.nn.relu(x)))
    pooled = tap('penultimate', jnp.mean(x, (1, 2)))
    return pooled @ p['head'], {'bn0': bn0, 'bn1': bn1}

  info = _info(
    'hand_made', size, classes, ('conv1', 'conv2'), (('bn0',), ('bn1',))
  )
  names = ('conv1.in', 'conv1', 'conv2.in', 'conv2', 'penultimate_map')
  info = dataclasses.replace(
    info, taps=('input', *names, 'penultimate', 'logits')
  )
  return _finish(init, forward, info)


def random_images(seed: int, n: int, size: int = 8):
  """uint8 [n, size, size, 3]."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def add_patch(images):
  """A white 2×2 patch in the lower right corner of uint8 images."""
  images = np.array(images)
  images[:, -2:, -2:] = 255
  return images
