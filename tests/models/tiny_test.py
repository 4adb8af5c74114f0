import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import models, tree, types

SPEC = types.DataSpec(
  name='toy',
  image_shape=(8, 8, 3),
  num_classes=4,
  mean=(0.5,) * 3,
  std=(0.25,) * 3,
)


def stripes(seed: int, n: int):
  """Noisy images; the class is the stripes' direction and color."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(4, size=n)
  wave = np.indices((8, 8)) % 2
  images = rng.uniform(0, 0.5, (n, 8, 8, 3))
  for i, label in enumerate(labels):
    images[i, :, :, label // 2] += 0.5 * wave[label % 2]
  return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


class TinyTest(parameterized.TestCase):
  def test_number_of_weights(self):
    state = models.make('tiny', SPEC).init(jax.random.key(0))
    self.assertEqual(tree.count(state.params), 5268)

  def test_learns(self):
    model = models.make('tiny', SPEC)
    images, labels = stripes(0, 256)

    def loss(params, stats):
      state = types.ModelState(params=params, batch_stats=stats)
      logits, state = model.apply(state, images, train=True)
      log_p = jax.nn.log_softmax(logits)
      picked = jnp.take_along_axis(log_p, labels[:, None], 1)
      return -picked.mean(), state.batch_stats

    def step(state, _):
      (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
        state.params, state.batch_stats
      )
      params = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
      return types.ModelState(params=params, batch_stats=stats), value

    @jax.jit
    def train(state):
      return jax.lax.scan(step, state, None, length=60)

    state, losses = train(model.init(jax.random.key(0)))
    self.assertLess(float(losses[-1]), 0.1 * float(losses[0]))
    images, labels = stripes(1, 128)
    logits, _ = model.apply(state, images)
    accuracy = jnp.mean(logits.argmax(-1) == labels)
    self.assertGreater(float(accuracy), 0.95)
