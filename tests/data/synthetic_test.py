import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import data


def init(key):
  """A conv net of about 3,000 weights, without normalization layers."""
  keys = jax.random.split(key, 3)
  shapes = ((3, 3, 3, 16), (3, 3, 16, 16), (16, 4))
  scales = (0.3, 0.12, 0.1)
  return [
    s * jax.random.normal(k, shape)
    for k, shape, s in zip(keys, shapes, scales, strict=True)
  ]


def logits(params, images):
  x = (images - 0.5) / 0.12
  for kernel in params[:2]:
    x = jax.nn.relu(
      jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
    )
  return x.mean((1, 2)) @ params[2]


def train(dataset, epochs=2):
  """Trains with augmentation; returns the weights."""
  augment, tx = data.augment_fn(dataset.spec), optax.adam(1e-2)

  def loss(params, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(
      logits(params, images), labels
    ).mean()

  @jax.jit
  def step(params, state, images, labels, key):
    images = augment(data.to_float(images), jax.random.split(key, 64))
    grads = jax.grad(loss)(params, images, labels)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state

  params = init(jax.random.key(0))
  state = tx.init(params)
  for epoch in range(epochs):
    order = np.random.default_rng(epoch).permutation(len(dataset.train.labels))
    for i, rows in enumerate(order.reshape(-1, 64)):
      key = jax.random.fold_in(jax.random.key(1), 100 * epoch + i)
      images, labels = (x[rows] for x in dataset.train)
      params, state = step(params, state, images, labels, key)
  return params


def accuracy(params, images, labels):
  predicted = logits(params, data.to_float(images)).argmax(-1)
  return float(jnp.mean(predicted == labels))


class SyntheticTest(parameterized.TestCase):
  def test_shapes_and_balance(self):
    dataset = data.load('synthetic')
    self.assertEqual(dataset.train.images.shape, (1024, 8, 8, 3))
    self.assertEqual(dataset.test.images.shape, (512, 8, 8, 3))
    for split in dataset[1:]:
      self.assertEqual(split.images.dtype, np.uint8)
      self.assertEqual(split.labels.dtype, np.int32)
      counts = np.bincount(split.labels)
      np.testing.assert_array_equal(counts, len(split.labels) // 4)

  def test_the_bytes_never_change(self):
    train = data.load('synthetic').train
    digest = hashlib.sha256(train.images.tobytes() + train.labels.tobytes())
    self.assertStartsWith(digest.hexdigest(), '49e3e500ebce57bd')

  def test_splits_share_no_image(self):
    dataset = data.load('synthetic')
    train, test = (
      {image.tobytes() for image in split.images} for split in dataset[1:]
    )
    self.assertLen(train, 1024)
    self.assertEmpty(train & test)

  def test_black_and_white_are_left_to_triggers(self):
    for split in data.load('synthetic')[1:]:
      self.assertGreaterEqual(split.images.min(), 40)
      self.assertLessEqual(split.images.max(), 215)

  def test_the_spec_is_that_of_the_images(self):
    dataset = data.load('synthetic')
    images = dataset.train.images / 255
    np.testing.assert_allclose(
      images.mean((0, 1, 2)), dataset.spec.mean, atol=0.02
    )
    np.testing.assert_allclose(
      images.std((0, 1, 2)), dataset.spec.std, atol=0.02
    )

  def test_a_small_net_learns_it_without_looking_at_the_corner(self):
    dataset = data.load('synthetic')
    params = train(dataset)
    images, labels = dataset.test
    self.assertGreaterEqual(accuracy(params, images, labels), 0.95)
    covered = images.copy()
    covered[:, 5:, 5:] = 128
    self.assertGreaterEqual(accuracy(params, covered, labels), 0.95)
