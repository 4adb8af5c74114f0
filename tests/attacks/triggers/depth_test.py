"""Color depth: levels by hand, the stored ones, a naive dithering."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax.attacks.triggers import depth
from tests.reference import golden


def reference(name):
  return golden.arrays('triggers_in_loop')[f'bpp_{name}']


def levels():
  return jnp.asarray(golden.arrays('triggers_static')['images_u8'], jnp.float32)


def naive_dither(image, num):
  """Floyd–Steinberg as textbooks write it, in float64."""
  image = np.float64(image)
  h, w, _ = image.shape
  for y in range(h):
    for x in range(w):
      old = image[y, x].copy()
      step = np.clip(np.round(old / 255 * (num - 1)), 0, num - 1)
      image[y, x] = step / (num - 1) * 255
      shares = ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1))
      for dy, dx, share in shares:
        if y + dy < h and 0 <= x + dx < w:
          image[y + dy, x + dx] += (old - image[y, x]) * share / 16
  return np.round(image)


class SqueezeTest(parameterized.TestCase):
  def test_equals_the_reference(self):
    got = depth.squeeze(levels(), 8)
    np.testing.assert_allclose(got, reference('quantised_0_255'), atol=1e-4)

  @parameterized.parameters(2, 4, 8, 200)
  def test_few_levels_and_twice_is_once(self, num):
    ramp = jnp.arange(256.0)
    got = depth.squeeze(ramp, num)
    self.assertLen(np.unique(got), num)
    np.testing.assert_array_equal(depth.squeeze(got, num), got)
    self.assertLessEqual(
      float(jnp.abs(got - ramp).max()), 127.5 / (num - 1) + 1e-3
    )

  def test_all_levels_are_the_identity(self):
    ramp = jnp.arange(256.0)
    np.testing.assert_allclose(depth.squeeze(ramp, 256), ramp, rtol=1e-6)

  def test_two_levels_by_hand(self):
    got = depth.squeeze(jnp.asarray([-9.0, 0, 127, 128, 255, 300]), 2)
    np.testing.assert_array_equal(got, [0, 0, 0, 255, 255, 255])


class DitherTest(parameterized.TestCase):
  def test_equals_the_reference(self):
    got = jax.jit(jax.vmap(lambda x: depth.dither(x, 8)))(levels())
    np.testing.assert_array_equal(got, reference('dithered_0_255'))

  @parameterized.parameters(2, 3)
  def test_equals_a_naive_loop(self, num):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 2))
    got = depth.dither(jnp.asarray(image, jnp.float32), num)
    np.testing.assert_array_equal(got, naive_dither(image, num))

  def test_a_pixel_by_hand(self):
    # 100 of two levels is 0; its neighbor gets 100·7/16 and 130 becomes 255.
    row = jnp.asarray([100.0, 100.0])[None, :, None]
    np.testing.assert_array_equal(depth.dither(row, 2)[0, :, 0], [0, 255])

  def test_keeps_the_mean(self):
    grey = jnp.full((16, 16, 1), 100.0)
    self.assertAlmostEqual(float(depth.dither(grey, 2).mean()), 100, delta=8)


if __name__ == '__main__':
  absltest.main()
