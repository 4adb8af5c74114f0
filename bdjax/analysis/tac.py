"""TAC: how much each channel changes when the trigger is put on.

For pairs of a clean image x and the same image with the trigger, x_ξ, and a
channel's map a(x), three readings of "change":

  l2_of_map     mean over pairs of ‖a(x_ξ) − a(x)‖₂ over the map; it ranks
                the backdoor neurons of the existence coefficient.
  l1_sum        mean over pairs of |a(x_ξ) − a(x)|, summed over the map; that
                of BackdoorBench's figure.
  abs_of_mean   |mean over pairs and map of a(x_ξ) − a(x)|; opposite changes
                cancel.

Images stream through in batches; nothing but one sum per channel is kept.

References: Zheng et al., Data-free Backdoor Removal based on Channel
Lipschitzness, ECCV 2022; SCLBD/BackdoorBench: analysis/visual_tac.py.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.analysis import stream

Norm = Literal['l2_of_map', 'l1_sum', 'abs_of_mean']
NORMS = ('l2_of_map', 'l1_sum', 'abs_of_mean')


class Tac(NamedTuple):
  """Trigger-activated change of every channel of every tap.

  Attributes:
    tac: per tap float32 [channels], in units of the activation.
    tac_relative: the same over the mean L2 norm of the tap's whole output,
      clean and triggered images together; comparable across layers.
  """

  tac: dict[str, jax.Array]
  tac_relative: dict[str, jax.Array]


def measure(
  classifier: types.Classifier,
  state: types.ModelState,
  clean,
  triggered,
  *,
  taps: Sequence[str] | None = None,
  norm: Norm = 'l2_of_map',
  batch_size: int = 250,
) -> Tac:
  """Trigger-activated change over pairs of images; jittable.

  Args:
    classifier: the model.
    state: its weights; the backdoored model, if neurons are to be ranked.
    clean: images [N, h, w, c], uint8 or float in [0, 1].
    triggered: the same images in the same order with the trigger on them.
    taps: where to look; None = the convolutions of the stages.
    norm: which reading of "change", see the module.
    batch_size: pairs per forward pass; does not change the result.

  Returns:
    Change per tap and channel.

  Raises:
    ValueError: if the two sets are no pairs, or a name is unknown.
  """
  checks.one_of(NORMS, norm=norm)
  checks.positive(batch_size=batch_size)
  if np.shape(clean) != np.shape(triggered):
    raise ValueError(
      f'clean images of shape {np.shape(clean)} and triggered images of shape '
      f'{np.shape(triggered)} are no pairs; stamp the clean images themselves.'
    )
  taps = tuple(classifier.info.conv_taps if taps is None else taps)
  before, mask = stream.batched(clean, batch_size)
  after, _ = stream.batched(triggered, batch_size)

  def add_batch(sums, batch):
    x, x_triggered, valid = batch
    a = stream.activations(classifier, state, x, taps)
    b = stream.activations(classifier, state, x_triggered, taps)
    new = {tap: _batch_sums(a[tap], b[tap], valid, norm) for tap in taps}
    return jax.tree.map(jnp.add, sums, new), None

  shapes = jax.eval_shape(
    lambda x: stream.activations(classifier, state, x, taps), before[0]
  )
  zeros = {
    tap: (jnp.zeros(shapes[tap].shape[-1]), jnp.zeros(())) for tap in taps
  }
  sums, _ = jax.lax.scan(add_batch, zeros, (before, after, mask))
  return _normalized(sums, np.shape(clean)[0], norm)


def _batch_sums(a, b, valid, norm: Norm):
  """Sums over the valid pairs: change [channels], norms of both outputs."""
  weight = valid.astype(jnp.float32)
  change = _change(b - a, norm)
  sizes = sum(jnp.sqrt(jnp.sum(_flat(z) ** 2, axis=(1, 2))) for z in (a, b))
  return jnp.sum(change * weight[:, None], axis=0), jnp.sum(sizes * weight)


def _flat(activation: jax.Array) -> jax.Array:
  """[b, ..., channels] as [b, positions, channels]."""
  b, channels = activation.shape[0], activation.shape[-1]
  return activation.reshape(b, -1, channels)


def _change(difference: jax.Array, norm: Norm) -> jax.Array:
  """Change of each image and channel [b, channels]."""
  difference = _flat(difference)
  if norm == 'l2_of_map':
    return jnp.sqrt(jnp.sum(difference**2, axis=1))
  if norm == 'l1_sum':
    return jnp.sum(jnp.abs(difference), axis=1)
  return jnp.mean(difference, axis=1)


def _normalized(sums, num_pairs: int, norm: Norm) -> Tac:
  """Sums over pairs to means, and to means relative to the tap's size."""
  tac, relative = {}, {}
  for tap, (change, sizes) in sums.items():
    tac[tap] = change / num_pairs
    if norm == 'abs_of_mean':
      tac[tap] = jnp.abs(tac[tap])
    size = sizes / (2 * num_pairs)
    relative[tap] = tac[tap] / jnp.where(size > 0, size, 1.0)
  return Tac(tac, relative)
