"""Hand-made classifiers for tests: linear in the flattened pixels."""

import jax
import jax.numpy as jnp

from bdjax import types


def spec(shape=(2, 2, 3), num_classes=4) -> types.DataSpec:
  return types.DataSpec(
    name='toy',
    image_shape=shape,
    num_classes=num_classes,
    mean=(0.0,) * shape[-1],
    std=(1.0,) * shape[-1],
  )


def info(data_spec: types.DataSpec) -> types.ClassifierInfo:
  return types.ClassifierInfo(
    arch='linear',
    num_classes=data_spec.num_classes,
    image_shape=data_spec.image_shape,
    mean=data_spec.mean,
    std=data_spec.std,
    taps=('input', 'penultimate', 'logits'),
    conv_taps=(),
    head_path=('kernel',),
    norm_paths=(),
    prune_graph=(),
  )


def classifier(data_spec: types.DataSpec) -> types.Classifier:
  """logits = flatten(x) @ kernel + bias; counts its train-mode passes."""
  h, w, c = data_spec.image_shape

  def init(key):
    kernel = jax.random.normal(key, (h * w * c, data_spec.num_classes))
    return types.ModelState(
      params={'kernel': kernel, 'bias': jnp.zeros(data_spec.num_classes)},
      batch_stats={'passes': jnp.zeros(())},
    )

  def apply(state, images, *, train=False, edits=None):
    del edits
    flat = images.reshape(images.shape[0], -1)
    logits = flat @ state.params['kernel'] + state.params['bias'][None]
    passes = state.batch_stats['passes'] + train
    stats = {'passes': passes}
    return logits, types.ModelState(params=state.params, batch_stats=stats)

  def features(state, images, **kwargs):
    return {'penultimate': images, 'logits': apply(state, images, **kwargs)[0]}

  return types.Classifier(init, apply, features, info(data_spec))


def constant(data_spec: types.DataSpec, label: int) -> types.ModelState:
  """The state that always answers `label`."""
  h, w, c = data_spec.image_shape
  n = data_spec.num_classes
  return types.ModelState(
    params={
      'kernel': jnp.zeros((h * w * c, n)),
      'bias': jax.nn.one_hot(label, n),
    },
    batch_stats={'passes': jnp.zeros(())},
  )
