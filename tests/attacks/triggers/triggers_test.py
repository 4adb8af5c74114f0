import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax.attacks.triggers import blend, levels, patch

GREY = np.arange(256, dtype=np.uint8)


class LevelsTest(parameterized.TestCase):
  def test_every_level_survives_the_round_trip(self):
    image = levels.to_image(jnp.asarray(GREY))
    np.testing.assert_array_equal(levels.to_levels(image), GREY)
    np.testing.assert_array_equal(levels.to_levels(GREY / 255.0), GREY)

  def test_truncate_drops_fractions_and_clips(self):
    got = levels.truncate(
      jnp.array([-3.0, 0.0, 0.99, 7.5, 7.999, 255.0, 300.0])
    )
    np.testing.assert_array_equal(got, [0, 0, 0, 7, 7, 255, 255])

  def test_truncate_forgives_rounding_errors_only(self):
    below = np.nextafter(np.float32(51), np.float32(0))
    self.assertEqual(float(levels.truncate(jnp.float32(below))), 51)
    self.assertEqual(float(levels.truncate(jnp.float32(50.999))), 50)


class PatchTest(parameterized.TestCase):
  def test_replaces_per_channel_element(self):
    image = jnp.full((2, 2, 3), 0.5)
    mark = np.zeros((2, 2, 3), np.uint8)
    mark[1, 1] = (255, 0, 1)
    got = np.asarray(patch.patch(image, mark))
    want = np.full((2, 2, 3), 0.5)
    want[1, 1] = (1, 0.5, 1 / 255)
    np.testing.assert_allclose(got, want, atol=1e-7)


class BlendTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.2, 0.05, 0.25, 0.125)
  def test_equals_integer_arithmetic(self, alpha):
    weight = round(1000 * alpha)
    x, g = np.meshgrid(GREY.astype(int), GREY.astype(int), indexing='ij')
    want = ((1000 - weight) * x + weight * g) // 1000
    fn = lambda a: blend.blend(x[..., None] / 255.0, g[..., None], a)
    for run in (fn, jax.jit(fn)):
      got = np.round(255 * np.asarray(run(jnp.float32(alpha))))[..., 0]
      np.testing.assert_array_equal(got, want)

  def test_table_is_at_most_one_level_below_the_formula(self):
    x, g = np.meshgrid(GREY.astype(int), GREY.astype(int), indexing='ij')
    gap = (8 * x + 2 * g) // 10 - blend.blend_table(0.2)
    self.assertEqual(set(np.unique(gap)), {0, 1})
    # Only exact whole numbers can fall.
    self.assertTrue(np.all((8 * x + 2 * g)[gap == 1] % 10 == 0))

  def test_table_look_up(self):
    table = blend.blend_table(0.5)
    image = jnp.full((1, 1, 1), 100 / 255)
    picture = np.full((1, 1, 1), 201, np.uint8)
    got = blend.blend_by_table(image, picture, jnp.asarray(table))
    self.assertAlmostEqual(float(got[0, 0, 0]), 150 / 255, places=6)

  def test_table_needs_a_python_number(self):
    with self.assertRaisesRegex(TypeError, 'legacy=False'):
      blend.blend_table(jnp.float32(0.2))


if __name__ == '__main__':
  absltest.main()
