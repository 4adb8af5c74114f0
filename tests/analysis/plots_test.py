import io

import numpy as np
from absl.testing import parameterized
from matplotlib import figure

from bdjax.analysis import plots


def drawn(fig):
  """Renders, so that layout and fonts are exercised."""
  fig.savefig(io.BytesIO(), format='png', dpi=40)


class PlotsTest(parameterized.TestCase):
  def test_perturbation_is_enlarged_around_gray(self):
    fig = figure.Figure()
    clean = np.full((2, 4, 4, 3), 100, np.uint8)
    triggered = np.full((2, 4, 4, 3), 0.5)
    perturbed = triggered + 0.05
    axes = plots.plot_images(
      fig,
      clean,
      triggered,
      perturbed,
      row_labels=('BadNets', 'WaNet'),
      captions=(('a', 'b', 'c'),) * 2,
    )
    drawn(fig)
    self.assertEqual(axes.shape, (2, 4))
    self.assertEqual(axes[0, 3].get_title(), 'Δ × 10')
    np.testing.assert_allclose(axes[1, 3].images[0].get_array(), 1.0)
    np.testing.assert_allclose(axes[0, 0].images[0].get_array(), 100 / 255)
    self.assertEqual(axes[1, 0].get_ylabel(), 'WaNet')
    self.assertEqual(axes[1, 2].get_xlabel(), 'c')

  @parameterized.parameters((0.05, 10), (0.4, 1), (0.9, 1), (0, 1), (1e-4, 100))
  def test_magnification_is_round_and_fits(self, top, expected):
    fig = figure.Figure()
    gray = np.full((1, 2, 2, 1), 0.05)
    axes = plots.plot_images(fig, gray, gray, gray + top)
    self.assertEqual(axes[0, 3].get_title(), f'Δ × {expected}')

  def test_bars_have_the_given_heights_and_missing_is_not_zero(self):
    fig = figure.Figure()
    ax = plots.plot_bars(
      fig.subplots(),
      ['FT', 'SAU'],
      0.99,
      [0.03, None],
      [0.9, 0.5],
      [0.8, 0.4],
      control=[0.2, 0.1],
      title='BadNets',
    )
    drawn(fig)
    heights = [[bar.get_height() for bar in group] for group in ax.containers]
    np.testing.assert_allclose(
      heights, [[0.99, 0.99], [0.03, 0], [0.9, 0.5], [0.8, 0.4]]
    )
    written = [text.get_text() for text in ax.texts]
    self.assertEqual(
      written, ['99', '99', '3', 'n/a', '90', '50', '.80', '.40']
    )
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    self.assertEqual(labels[-2:], ['BEC', 'same attack on clean inputs'])
    self.assertEqual(
      [t.get_text() for t in ax.get_xticklabels()], ['FT', 'SAU']
    )

  def test_paths_draw_each_treatment_and_say_where_the_ends_are(self):
    fig = figure.Figure()
    t = np.linspace(0, 1, 5)
    treatments = {
      'recalibrated': {'c_acc': 0.9 * np.ones(5), 'asr': 1 - t},
      'naive': {'c_acc': 0.5 * np.ones(5), 'asr': np.zeros(5)},
    }
    ax = plots.plot_paths(
      fig.subplots(), t, treatments, tau_star=0.5, title='BadNets'
    )
    drawn(fig)
    curves = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(
      curves['ASR, recalibrated BN'].get_ydata(), 1 - t
    )
    self.assertEqual(curves['ASR, recalibrated BN'].get_linestyle(), '-')
    self.assertNotEqual(curves['ASR, naive BN'].get_linestyle(), '-')
    self.assertIn('0 = backdoored, 1 = defended', ax.get_xlabel())
    self.assertIn('τ* = 0.5', [text.get_text() for text in ax.texts])

  @parameterized.parameters('high', 'low')
  def test_heat_is_dark_where_it_is_bad(self, bad):
    fig = figure.Figure()
    values = [[0.0, 1.0], [0.5, None]]
    ax = plots.plot_heat(
      fig.subplots(), ['FT', 'SAU'], ['BadNets', 'Blended'], values, bad=bad
    )
    drawn(fig)
    light = np.asarray(ax.images[0].get_array()).sum(-1)
    best, worst = (light[0, 0], light[0, 1])[:: 1 if bad == 'high' else -1]
    self.assertEqual(best, 3)  # white
    self.assertLess(worst, light[1, 0])
    self.assertLess(light[1, 0], best)
    texts = [text.get_text() for text in ax.texts]
    self.assertEqual(texts, ['0', '100', '50', 'n/a'])

  def test_heat_of_another_shape_is_refused(self):
    with self.assertRaisesRegex(ValueError, r'\(2, 2\) for 1 rows'):
      plots.plot_heat(
        figure.Figure().subplots(), ['FT'], ['a', 'b'], np.zeros((2, 2))
      )
