"""Corner marks: the published signs, other sizes, clipping."""

import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.attacks.triggers import corners

TOP = [[1, -1, -1], [-1, 1, -1], [1, -1, 1]]  # rows from the edge inwards
BOTTOM = [[1, -1, 1], [-1, 1, -1], [1, -1, -1]]


def signs(side=32, which='all'):
  return np.asarray(corners.corner_signs((side, side, 3), which))[..., 0]


class CornersTest(parameterized.TestCase):
  @parameterized.parameters(6, 8, 16, 28, 32)
  def test_published_signs(self, side):
    got = signs(side)
    np.testing.assert_array_equal(got[:3, :3], TOP)
    np.testing.assert_array_equal(got[::-1][:3, :3], BOTTOM)
    self.assertEqual(np.count_nonzero(got), 36)

  @parameterized.parameters(8, 32, 64)
  def test_mirrored_left_and_right(self, side):
    np.testing.assert_array_equal(signs(side), signs(side)[:, ::-1])

  def test_larger_images_get_larger_corners(self):
    small, large = signs(32), signs(64)
    np.testing.assert_array_equal(large, np.kron(small, np.ones((2, 2))))

  def test_bottom_right_alone(self):
    got = signs(which='bottom_right')
    np.testing.assert_array_equal(got[::-1, ::-1][:3, :3], BOTTOM)
    self.assertEqual(np.count_nonzero(got), 9)

  @parameterized.parameters((0.0, 100, 100), (0.5, 227, 0), (1.0, 255, 0))
  def test_levels_by_hand(self, amplitude, light, dark):
    image = jnp.full((32, 32, 3), 100 / 255)
    got = corners.add_signs(image, corners.corner_signs(image.shape), amplitude)
    got = np.round(255 * np.asarray(got)).astype(int)[..., 0]
    np.testing.assert_array_equal(got[signs() > 0], light)
    np.testing.assert_array_equal(got[signs() < 0], dark)
    np.testing.assert_array_equal(got[signs() == 0], 100)

  def test_bad_values(self):
    with self.assertRaisesRegex(ValueError, 'no room for corner patterns'):
      corners.corner_signs((5, 9, 3))
    with self.assertRaisesRegex(ValueError, "Did you mean 'bottom_right'"):
      corners.corner_signs((9, 9, 3), 'bottom right')
