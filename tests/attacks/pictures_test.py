import numpy as np
from absl.testing import absltest, parameterized

from bdjax.attacks import pictures


def low_share(picture):
  """Share of the variance at frequencies up to 1/8 cycle per pixel."""
  grey = picture.mean(axis=-1)
  power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
  fy = np.abs(np.fft.fftfreq(grey.shape[0]))[:, None]
  fx = np.abs(np.fft.fftfreq(grey.shape[1]))[None, :]
  return power[np.maximum(fy, fx) <= 1 / 8].sum() / power.sum()


class PicturesTest(parameterized.TestCase):
  @parameterized.parameters((32, 32, 3), (16, 16, 3), (8, 8, 1))
  def test_mark_is_a_white_3x3_corner(self, *shape):
    mark = pictures.badnets_mark(shape)
    want = np.zeros(shape, np.uint8)
    want[-3:, -3:] = 255
    np.testing.assert_array_equal(mark, want)

  def test_grid_mark_is_never_zero_within_the_square(self):
    mark = pictures.badnets_mark((32, 32, 3), grid=True)
    want = np.array([[255, 1, 255], [1, 255, 1], [255, 1, 255]])
    np.testing.assert_array_equal(mark[-3:, -3:, 1], want)
    self.assertEqual(np.count_nonzero(mark), 27)

  def test_mark_at_64_has_the_soft_rim(self):
    mark = pictures.badnets_mark((64, 64, 3))
    profile = np.array([0.25, 0.75, 1, 1, 1, 1, 1])
    want = 255 * profile[:, None] * profile[None, :]
    np.testing.assert_allclose(mark[-7:, -7:, 0], want, atol=1)
    self.assertEqual(np.count_nonzero(mark), 7 * 7 * 3)

  def test_crisp_mark_at_64_is_6x6(self):
    mark = pictures.badnets_mark((64, 64, 3), crisp=True)
    self.assertEqual(np.count_nonzero(mark == 255), 6 * 6 * 3)
    self.assertEqual(np.count_nonzero(mark), 6 * 6 * 3)
    grid = pictures.badnets_mark((64, 64, 3), crisp=True, grid=True)
    np.testing.assert_array_equal(
      grid[-6:, -6:, 0][::2, ::2], [[255, 1, 255], [1, 255, 1], [255, 1, 255]]
    )

  def test_picture_is_a_function_of_shape_and_seed(self):
    make = pictures.blended_picture
    one = make((32, 32, 3), seed=1)
    np.testing.assert_array_equal(make((32, 32, 3), seed=1), one)
    self.assertFalse(np.array_equal(make((32, 32, 3), seed=2), one))

  @parameterized.parameters(0, 1, 2)
  def test_picture_has_full_contrast_and_low_frequencies(self, seed):
    picture = pictures.blended_picture((32, 32, 3), seed=seed)
    self.assertEqual((picture.shape, picture.dtype), ((32, 32, 3), np.uint8))
    self.assertLess(picture.min(), 30)
    self.assertGreater(picture.max(), 240)
    self.assertGreater(picture.std(), 50)
    noise = pictures.noise_picture((32, 32, 3), seed=seed)
    self.assertGreater(low_share(picture), 0.5)
    self.assertLess(low_share(noise), 0.3)

  def test_pictures_have_one_channel_where_images_do(self):
    self.assertEqual(pictures.blended_picture((16, 8, 1)).shape, (16, 8, 1))

  def test_fit_scales_any_size(self):
    flat = np.full((5, 9), 77, np.uint8)
    got = pictures.fit(flat, (8, 4, 3))
    np.testing.assert_array_equal(got, np.full((8, 4, 3), 77))

  def test_fit_averages_when_it_shrinks(self):
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))[..., None]
    got = pictures.fit(stripes, (8, 8, 1))
    # Without anti-aliasing the stripes would come out as 0 or 200.
    np.testing.assert_allclose(got, 100, atol=20)

  def test_fit_keeps_a_picture_of_the_right_size(self):
    picture = pictures.noise_picture((8, 8, 3))
    np.testing.assert_array_equal(pictures.fit(picture, (8, 8, 3)), picture)

  def test_float_pictures_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'multiply floats'):
      pictures.fit(np.ones((8, 8, 3)), (8, 8, 3))

  @parameterized.parameters((8, 8, 4), (8,), (2, 8, 8, 3))
  def test_shapes_of_no_picture_are_refused(self, *shape):
    with self.assertRaisesRegex(ValueError, r'expected \[H, W\]'):
      pictures.fit(np.zeros(shape, np.uint8), (8, 8, 3))

  def test_other_channel_counts_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'attacks.from_trigger'):
      pictures.blended_picture((8, 8, 2))

  def test_unknown_asset_suggests_the_nearest(self):
    with self.assertRaisesRegex(KeyError, "Did you mean 'patch_image'"):
      pictures.from_assets({'patch': 1}, 'patch_image', ('patch_image',))


if __name__ == '__main__':
  absltest.main()
