"""A picture of all triggers in a store, for the report."""

import pathlib

import jax.numpy as jnp
import numpy as np
from matplotlib import figure

from bdjax import analysis, zoo
from launch import cli, world

NAME = 'gallery.png'
_ROWS = 8  # of a column of the picture
_EXAMPLES = 100  # images that the numbers and spectra average over


def draw(context: cli.Context, dataset: str | None = None) -> str | None:
  """Draws the trigger of every attacked model.

  PSNR and SSIM are means over the first test images that the trigger leads
  away; the picture shows the first of them.

  Args:
    context: where the store is.
    dataset: only models of this data set; None = those of the first model.

  Returns:
    Path of the PNG relative to the store, None without an attacked model.
  """
  wanted = {} if dataset is None else {'dataset': dataset}
  try:
    found = zoo.find(context.workdir, 'attacked/*', stage='attack', **wanted)
  except FileNotFoundError:
    return None
  shapes = [artefact.card.dataset for artefact in found]
  found = [a for a in found if a.card.dataset == shapes[0]]
  rows = [_row(artefact, context) for artefact in found]
  rows = sorted(rows, key=lambda row: row['name'])
  blocks = -(-len(rows) // _ROWS)
  height = -(-len(rows) // blocks)
  fig = figure.Figure(
    figsize=(7 * blocks, 1.9 * height + 0.3), layout='constrained'
  )
  for i, part in enumerate(fig.subfigures(1, blocks, squeeze=False)[0]):
    _plot(part, rows[i * height : (i + 1) * height], height)
  path = pathlib.Path('figures') / NAME
  (context.workdir / path).parent.mkdir(parents=True, exist_ok=True)
  fig.savefig(context.workdir / path, dpi=150, facecolor='white')
  return str(path)


def _plot(fig, rows: list[dict], height: int) -> None:
  """Some rows, with empty ones below up to a height."""
  of = lambda name: np.stack(
    [row[name] for row in rows] + [rows[0][name]] * (height - len(rows))
  )
  axes = analysis.gallery.plot_triggers(
    fig,
    of('clean'),
    of('triggered'),
    of('spectrum'),
    row_labels=[row['name'] for row in rows],
    captions=[f'{row["psnr"]:.1f} dB, SSIM {row["ssim"]:.2f}' for row in rows],
  )
  for ax in axes[len(rows) :].ravel():
    ax.set_visible(False)


def _row(artefact: zoo.Artefact, context: cli.Context) -> dict:
  """What one attack does to test images."""
  here = world.of_card(artefact.card, context)
  victim = world.victim(artefact, here)
  clean, triggered, *_ = world.triggered_test(here, victim, _EXAMPLES)
  pair = jnp.asarray(clean) / 255, jnp.asarray(triggered) / 255
  return {
    'name': artefact.card.method,
    'clean': clean[0],
    'triggered': triggered[0],
    'spectrum': np.asarray(analysis.quality.spectrum(*pair)),
    'psnr': float(analysis.quality.psnr(*pair).mean()),
    'ssim': float(analysis.quality.ssim(*pair).mean()),
  }
