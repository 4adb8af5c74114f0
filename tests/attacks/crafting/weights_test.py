"""Weights as assets: there and back, what is held out, plain descent."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import optim
from bdjax.attacks.crafting import weights

KEY = jax.random.key(0)
TREE = {'a': {'kernel': np.arange(6.0).reshape(2, 3)}, 'b': np.float32(7)}


class WeightsTest(parameterized.TestCase):
  def test_there_and_back(self):
    vector = weights.flat(TREE)
    self.assertEqual((vector.dtype, vector.shape), (np.float32, (7,)))
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    back = weights.like('encoder', vector, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)
    self.assertEqual(jax.tree.structure(back), jax.tree.structure(TREE))

  def test_other_sizes_are_refused(self):
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
    for wrong in (np.zeros(6), np.zeros((7, 1))):
      with self.assertRaisesRegex(
        ValueError, "'encoder' has shape .* has 7 weights.*craft it anew"
      ):
        weights.like('encoder', wrong, shapes)

  @parameterized.parameters((2, 1), (4, 1), (100, 10), (20000, 1000))
  def test_a_tenth_is_held_out(self, num, want):
    used, held_out = weights.hold_out(KEY, num)
    self.assertLen(held_out, want)
    both = np.sort(np.concatenate([used, held_out]))
    np.testing.assert_array_equal(both, np.arange(num))
    other = weights.hold_out(jax.random.key(3), 100)[1]
    again = weights.hold_out(KEY, 100)[1]
    self.assertFalse(np.array_equal(other, again))

  def test_one_image_is_too_few(self):
    with self.assertRaisesRegex(ValueError, 'at least 2'):
      weights.hold_out(KEY, 1)

  def test_training_is_descent_on_the_rows_given(self):
    # (w − x)² / 2 on a single image: w ← w − η (w − x), step after step.
    images = np.zeros((3, 1, 1, 1), np.uint8)
    images[1] = 255

    def objective(w, steps, batch, clock):
      del clock
      loss = jnp.mean((w - batch['image']) ** 2) / 2
      return loss, ({'w': w}, steps + 1)

    optimizer = optim.sgd(optim.constant(0.5), momentum=0.0, weight_decay=0.0)
    w, steps, curves = weights.train(
      KEY,
      jnp.float32(0),
      jnp.int32(0),
      images,
      np.array([1]),
      objective,
      optimizer,
      num_epochs=4,
      batch_size=8,
    )
    self.assertEqual(int(steps), 4)
    np.testing.assert_allclose(curves['w'], [0, 0.5, 0.75, 0.875])
    np.testing.assert_allclose(w, 0.9375)
