"""The pool of drawn scenes, and pools of a user's own."""

import numpy as np
from absl.testing import absltest, parameterized

from bdjax.attacks import reflections


class ReflectionsTest(parameterized.TestCase):
  def test_pool_is_a_function_of_shape_and_seed(self):
    one = reflections.draw(5, (16, 16, 3), 1)
    reflections.draw.cache_clear()
    np.testing.assert_array_equal(reflections.draw(5, (16, 16, 3), 1), one)
    other = reflections.draw(5, (16, 16, 3), 2)
    self.assertEqual(len({x.tobytes() for x in (*one, *other)}), 10)

  def test_fewer_pictures_are_the_first_of_more(self):
    more = reflections.draw(5, (16, 16, 3), 0)
    np.testing.assert_array_equal(reflections.draw(3, (16, 16, 3), 0), more[:3])

  @parameterized.parameters((32, 32, 3), (8, 12, 1))
  def test_pictures_have_contrast(self, *shape):
    pool = reflections.draw(8, shape)
    self.assertEqual((pool.shape, pool.dtype), ((8, *shape), np.uint8))
    self.assertGreater(min(x.std() for x in pool), 20)
    self.assertBetween(pool.mean(), 90, 190)

  def test_pool_cannot_be_written_to(self):
    with self.assertRaises(ValueError):
      reflections.draw(2, (8, 8, 3))[0] = 0

  def test_own_pictures_are_scaled_one_by_one(self):
    levels = np.array([10, 200], np.uint8)
    own = np.broadcast_to(levels[:, None, None, None], (2, 20, 30, 3))
    got = reflections.fit_all(own, (8, 6, 3))
    self.assertEqual(got.shape, (2, 8, 6, 3))
    np.testing.assert_array_equal(got[:, 0, 0, 0], levels)

  @parameterized.parameters(((8, 8),), ((0, 8, 8, 3),), ((1, 2, 8, 8, 3),))
  def test_what_is_no_pool_is_refused(self, shape):
    with self.assertRaisesRegex(ValueError, r'expected \[n, H, W, 3\]'):
      reflections.fit_all(np.zeros(shape, np.uint8), (8, 8, 3))

  def test_floats_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'pictures are uint8'):
      reflections.fit_all(np.zeros((1, 8, 8, 3)), (8, 8, 3))

  def test_an_empty_pool_is_refused(self):
    with self.assertRaisesRegex(ValueError, '`num=0` must be positive'):
      reflections.draw(0, (8, 8, 3))


if __name__ == '__main__':
  absltest.main()
