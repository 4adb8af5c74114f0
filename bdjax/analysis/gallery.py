"""A picture of triggers: what they look like and where their energy lies."""

from collections.abc import Sequence

import numpy as np

from bdjax.analysis import ink

MAGNIFY = 10


def plot_triggers(
  fig,
  clean,
  triggered,
  spectra,
  *,
  row_labels: Sequence[str] = (),
  captions: Sequence[str] = (),
) -> np.ndarray:
  """Grid of clean and triggered images, their difference and its spectrum.

  The difference is shown around middle gray, `MAGNIFY` times enlarged; spectra
  on a logarithmic scale from the row's largest value, white, to a thousandth
  of it, with frequency 0 in the middle.

  Args:
    fig: matplotlib figure or subfigure, empty.
    clean: [rows, h, w, c], uint8 or float in [0, 1].
    triggered: the same images with the trigger.
    spectra: [rows, h, w], not negative; see `quality.spectrum`.
    row_labels: one per row, such as the attack's name.
    captions: one per row, below the triggered image.

  Returns:
    Array of axes [rows, 4].
  """
  clean, triggered = ink.unit(clean), ink.unit(triggered)
  difference = np.clip(0.5 + MAGNIFY * (triggered - clean), 0, 1)
  shades = [_decades(spectrum)[..., None] for spectrum in np.asarray(spectra)]
  columns = (clean, triggered, difference, shades)
  titles = ('clean', 'triggered', f'difference × {MAGNIFY}', 'spectrum')
  axes = fig.subplots(len(clean), len(columns), squeeze=False)
  for (row, column), ax in np.ndenumerate(axes):
    ink.draw_image(ax, columns[column][row])
    if row == 0:
      ax.set_title(titles[column], fontsize=9, color=ink.INK, pad=5)
    if column == 0 and row < len(row_labels):
      ax.set_ylabel(row_labels[row], fontsize=9, color=ink.INK, labelpad=6)
    if column == 1 and row < len(captions):
      ax.set_xlabel(captions[row], fontsize=8, color=ink.INK, labelpad=3)
  return axes


def _decades(spectrum: np.ndarray) -> np.ndarray:
  """1 where a spectrum is largest, 0 from three decades below."""
  top = spectrum.max(initial=0.0)
  if top <= 0:
    return np.zeros_like(spectrum)
  return 1 + np.log10(np.clip(spectrum / top, 1e-3, 1)) / 3
