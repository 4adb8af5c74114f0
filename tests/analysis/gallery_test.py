"""The picture of triggers shows the numbers it is given."""

import numpy as np
from absl.testing import parameterized
from matplotlib import figure

from bdjax.analysis import gallery

CLEAN = np.full((2, 8, 8, 3), 100, np.uint8)


def draw(triggered, spectra, **words):
  return gallery.plot_triggers(
    figure.Figure(), CLEAN, triggered, spectra, **words
  )


def shown(ax):
  return np.asarray(ax.images[0].get_array())


class GalleryTest(parameterized.TestCase):
  def test_rows_columns_and_words(self):
    axes = draw(
      CLEAN, np.ones((2, 8, 8)), row_labels=['a', 'b'], captions=['x', 'y']
    )
    self.assertEqual(axes.shape, (2, 4))
    self.assertEqual([ax.get_ylabel() for ax in axes[:, 0]], ['a', 'b'])
    self.assertEqual([ax.get_xlabel() for ax in axes[:, 1]], ['x', 'y'])
    self.assertEqual(axes[0, 2].get_title(), 'difference × 10')

  def test_difference_is_enlarged_around_gray(self):
    triggered = CLEAN.copy()
    triggered[0, 0, 0], triggered[0, 1, 1] = 105, 0
    image = shown(draw(triggered, np.ones((2, 8, 8)))[0, 2])
    np.testing.assert_allclose(image[0, 0], 0.5 + 50 / 255, atol=1e-6)
    np.testing.assert_allclose(image[1, 1], 0)
    np.testing.assert_allclose(image[2, 2], 0.5)

  def test_spectra_span_three_decades_of_their_own(self):
    spectra = np.zeros((2, 8, 8))
    spectra[0, 4, 4], spectra[0, 0, 0], spectra[0, 0, 1] = 50, 5, 1e-9
    axes = draw(CLEAN, spectra)
    first, second = shown(axes[0, 3]), shown(axes[1, 3])
    np.testing.assert_allclose(first[4, 4], 1)
    np.testing.assert_allclose(first[0, 0], 2 / 3)
    np.testing.assert_allclose(first[0, 1], 0)
    np.testing.assert_array_equal(second, 0)  # nothing changed: black
