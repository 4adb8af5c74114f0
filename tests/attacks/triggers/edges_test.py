"""Edges: the Sobel magnitude against SciPy's and by hand."""

import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from scipy import ndimage

from bdjax.attacks.triggers import edges

RNG = np.random.default_rng(0)


def step(low, high, channels=3):
  """A 6×8 image, dark on its left half and bright on its right one."""
  row = np.repeat([low, high], 4).astype(np.float32) / 255
  return jnp.broadcast_to(row[None, None, :, None], (1, 6, 8, channels))


class EdgesTest(parameterized.TestCase):
  @parameterized.parameters((5, 7), (1, 4), (3, 1))
  def test_magnitude_equals_that_of_scipy(self, h, w):
    plane = RNG.uniform(0, 255, (h, w))
    slopes = [ndimage.sobel(plane, axis, mode='reflect') / 4 for axis in (0, 1)]
    want = np.sqrt((slopes[0] ** 2 + slopes[1] ** 2) / 2)
    got = edges.sobel(jnp.asarray(plane[None], jnp.float32))
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-3)

  def test_brightness_by_hand(self):
    image = jnp.asarray([[[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]]])
    want = [[[0.299, 0.587, 0.114, 1.0]]]
    np.testing.assert_allclose(edges.gray(image), want, rtol=1e-6)
    plane = jnp.asarray(RNG.uniform(size=(2, 3, 4, 1)), jnp.float32)
    np.testing.assert_array_equal(edges.gray(plane), plane[..., 0])

  # A vertical step of d levels has the magnitude d / √2 on both its sides.
  @parameterized.parameters((39, False), (40, True))
  def test_a_step_is_an_edge_from_28_levels_of_magnitude(self, size, want):
    got = np.asarray(edges.is_edge(step(100, 100 + size)))[0, ..., 0]
    self.assertEqual(got[:, 3:5].all(), want)
    self.assertEqual(got[:, 3:5].any(), want)
    self.assertFalse(got[:, :3].any() or got[:, 5:].any())

  def test_edges_in_color_on_white(self):
    color = jnp.asarray([[80, 160, 80]]) / 255.0
    got = np.asarray(edges.inked(step(0, 255), color))[0]
    np.testing.assert_allclose(got[:, 3:5] * 255, [[[80, 160, 80]] * 2] * 6)
    np.testing.assert_array_equal(got[:, :3], 1)
    np.testing.assert_array_equal(got[:, 5:], 1)

  def test_every_image_has_its_own_color(self):
    two = jnp.concatenate([step(0, 255)] * 2)
    got = edges.inked(two, jnp.asarray([[0.1] * 3, [0.2] * 3]))
    np.testing.assert_allclose(got[:, 0, 3, 0], [0.1, 0.2], rtol=1e-6)
