"""Warps: torch's cubic matrix by hand, grids, and the stored ones."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax.attacks.triggers import warp
from tests.reference import golden


def reference(name):
  return golden.arrays('triggers_in_loop')[f'wanet_{name}']


def images():
  return jnp.asarray(golden.arrays('triggers_static')['images_u8']) / 255.0


def unit(shape=(32, 32)):
  control = jnp.asarray(reference('control_uniform')[0])
  return warp.field(control, shape)


class CubicMatrixTest(parameterized.TestCase):
  def test_two_points_to_three_by_hand(self):
    # In the middle taps −1, 0, 1, 2 weigh a/8, (4−a)/8, (4−a)/8, a/8 for
    # a = −0.75; beyond the ends the end itself counts.
    want = [[1, 0], [0.5, 0.5], [0, 1]]
    np.testing.assert_allclose(warp.cubic_matrix(3, 2), want, atol=1e-12)

  def test_three_points_to_five_by_hand(self):
    a = -0.75
    outer, inner = a / 8, (4 - a) / 8
    want = [
      [1, 0, 0],
      [outer + inner, inner, outer],
      [0, 1, 0],
      [outer, inner, inner + outer],
      [0, 0, 1],
    ]
    np.testing.assert_allclose(warp.cubic_matrix(5, 3), want, atol=1e-12)

  @parameterized.parameters((32, 4), (8, 4), (4, 4), (7, 2), (16, 8))
  def test_rows_sum_to_one_and_ends_are_kept(self, num_out, num_in):
    matrix = warp.cubic_matrix(num_out, num_in)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix[0], np.eye(num_in)[0], atol=1e-12)
    np.testing.assert_allclose(matrix[-1], np.eye(num_in)[-1], atol=1e-12)

  def test_as_many_points_are_the_identity(self):
    np.testing.assert_allclose(warp.cubic_matrix(5, 5), np.eye(5), atol=1e-12)


class GridTest(parameterized.TestCase):
  def test_equals_the_reference(self):
    np.testing.assert_allclose(unit(), reference('noise_grid')[0], atol=5e-6)
    np.testing.assert_allclose(
      warp.identity((32, 32)), reference('identity_grid')[0], atol=5e-7
    )
    np.testing.assert_allclose(
      warp.grid(unit(), 0.5), reference('grid_f64')[0], atol=5e-7
    )

  def test_cross_grid_equals_the_reference(self):
    noise = jnp.asarray(reference('cross_noise_uniform'))
    got = warp.disturb(jnp.asarray(reference('grid')[0]), noise)
    np.testing.assert_allclose(got, reference('cross_grid'), atol=5e-7)

  def test_mean_displacement_is_a_fifth_of_a_pixel(self):
    moved = warp.grid(unit(), 0.5) - warp.identity((32, 32))
    pixels = float(jnp.mean(jnp.abs(moved))) * 31 / 2
    self.assertAlmostEqual(pixels, 0.19, delta=0.04)

  def test_fields_are_scaled_by_their_control_points(self):
    control = jnp.asarray(reference('control_uniform')[0])
    np.testing.assert_allclose(
      warp.field(7 * control, (9, 9)),
      warp.field(control, (9, 9)),
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters((0.5, 1.0), (50.0, 1.0), (0.5, 3.0))
  def test_points_stay_inside_after_the_last_scaling(self, strength, rescale):
    grid = warp.grid(unit((16, 24)), strength, rescale)
    self.assertEqual(grid.shape, (16, 24, 2))
    self.assertLessEqual(float(jnp.abs(grid).max()), 1)
    if rescale > 1:
      self.assertGreater(float(jnp.mean(jnp.abs(grid) == 1)), 0.3)

  def test_one_control_point_is_no_field(self):
    with self.assertRaisesRegex(ValueError, '`grid_size=1`'):
      warp.field(jnp.ones((2, 1, 1)), (8, 8))


class WarpTest(parameterized.TestCase):
  def test_strength_zero_is_the_identity(self):
    grid = warp.grid(unit(), 0.0)
    # float32 coordinates of 31·(g + 1)/2 are whole up to a few ulp.
    np.testing.assert_allclose(
      warp.warp(images(), grid[None]), images(), atol=5e-6
    )

  @parameterized.parameters(('grid', 'bd'), ('cross_grid', 'cross'))
  def test_equals_the_reference(self, grid, name):
    got = warp.warp(images(), jnp.asarray(reference(grid)))
    np.testing.assert_allclose(got, reference(f'{name}_pixel01'), atol=1e-5)

  def test_columns_come_first(self):
    # Everything read one pixel further right: the column moves, not the row.
    grid = warp.identity((5, 5)) + jnp.asarray([0.5, 0.0])[None, None]
    grid = jnp.clip(grid, -1, 1)
    image = jnp.arange(25.0).reshape(1, 5, 5, 1) / 25
    got = np.asarray(warp.warp(image, grid[None]))[0, ..., 0] * 25
    want = np.arange(25).reshape(5, 5)[:, [1, 2, 3, 4, 4]]
    np.testing.assert_allclose(got, want, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
