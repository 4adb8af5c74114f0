import numpy as np
from absl.testing import parameterized
from matplotlib import figure

from bdjax.analysis import charts


def _axes():
  return figure.Figure().subplots()


def _texts(ax):
  return [text.get_text() for text in ax.texts]


class ChartsTest(parameterized.TestCase):
  def test_scatter_puts_points_where_they_belong(self):
    groups = {'a': ([0.1, None], [0.9, 0.2]), 'b': ([0.5], [0.3])}
    ax = charts.plot_scatter(
      _axes(), groups, labels={'a': ['x', 'y']}, xlabel='rate', ylabel='n'
    )
    offsets = [np.asarray(c.get_offsets()) for c in ax.collections]
    np.testing.assert_allclose(offsets[1], [[0.5, 0.3]])
    np.testing.assert_allclose(offsets[0][0], [0.1, 0.9])
    self.assertTrue(np.ma.is_masked(ax.collections[0].get_offsets()[1]))
    self.assertEqual(_texts(ax), ['x', 'y'])
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    self.assertEqual(legend, ['a', 'b'])

  def test_lines_are_medians_of_their_models(self):
    rates = np.array([[0.0, 0.2], [0.1, 0.4], [0.8, 0.9]])
    ax = charts.plot_rates(
      _axes(), [1, 10], {'many': rates, 'one': [0.5, 0.6]}, xlabel='queries'
    )
    many, one = ax.get_lines()
    np.testing.assert_allclose(many.get_ydata(), [0.1, 0.4])
    np.testing.assert_allclose(one.get_ydata(), [0.5, 0.6])
    self.assertLen(ax.collections, 1)  # the band of the several only

  def test_bars_stand_side_by_side_and_miss_what_is_missing(self):
    ax = charts.plot_grouped_bars(
      _axes(), ['ft', 'nc'], {'p': [0.5, None], 'o': [0.1, 0.2]}
    )
    heights = [bar.get_height() for bar in ax.patches]
    self.assertEqual(heights, [0.5, 0.0, 0.1, 0.2])
    self.assertIn('n/a', _texts(ax))
    left = [bar.get_x() for bar in ax.patches]
    self.assertLess(left[0], left[2])
