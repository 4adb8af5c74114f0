"""A mark that excites chosen neurons of a clean model (for TrojanNN)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, surgery, types

_ENOUGH = 1e-3  # loss at which the search ends


class Mark(NamedTuple):
  """What a search for a mark has found.

  Attributes:
    image: z of the smallest loss, float32 [h, w, c] in [0, 1].
    loss: its loss, float32 [].
    first_loss: that of the mask's own picture, float32 [].
  """

  image: jax.Array
  loss: jax.Array
  first_loss: jax.Array


def heaviest(
  classifier: types.Classifier, model: types.ModelState, number: int
) -> np.ndarray:
  """Inputs of the last linear layer with the largest Σ |weight|.

  Args:
    classifier: the network; `info.head_path` is read.
    model: its state.
    number: how many.

  Returns:
    int [number], the heaviest first; of equal ones the first.

  Raises:
    ValueError: if the layer has fewer inputs.
  """
  checks.positive(num_neuron=number)
  head, _ = surgery.split_head(classifier, model.params)
  weight = np.abs(np.asarray(surgery.head_kernel(head))).sum(1)
  if number > len(weight):
    raise ValueError(
      f'`num_neuron={number}` exceeds the {len(weight)} inputs of the last '
      f"layer of '{classifier.info.arch}'; lower it."
    )
  return np.argsort(-weight, kind='stable')[:number]


def search(
  classifier: types.Classifier,
  model: types.ModelState,
  mask: types.Image,
  neurons: np.ndarray,
  *,
  value: float,
  eps: float,
  step: float,
  steps: int,
) -> Mark:
  """Signed descent on the mark; one program.

  Args:
    classifier: the network; its tap 'penultimate' [b, d] is read.
    model: a clean model, in eval mode.
    mask: z₀, float [h, w, c] in [0, 1]; the mark lives where it is not 0.
    neurons: int [k], which of the d activations.
    value: what they are driven to.
    eps: radius around z₀ in [0, 1] units.
    step: size of a step.
    steps: largest number of them.

  Returns:
    The best mark.

  Raises:
    ValueError: if a size is negative or `steps` not positive.
  """
  checks.positive(steps=steps)
  checks.non_negative(step=step)
  checks.pixel_budget('linf', eps=eps)
  return _search(model, mask, neurons, value, eps, step, steps, classifier)


@functools.partial(jax.jit, static_argnames=('classifier',))
def _search(model, start, neurons, value, eps, step, steps, classifier) -> Mark:
  """`search`, compiled once for a network."""
  support = start > 0

  def loss_fn(z):
    image = jnp.where(support, z, 0)[None]
    seen = classifier.features(model, image)['penultimate'].ravel()
    return jnp.sum((seen[neurons] - value) ** 2)

  def keep(best, z, loss):
    image = jnp.where(loss < best.loss, z, best.image)
    return best._replace(image=image, loss=jnp.minimum(loss, best.loss))

  def goes_on(state):
    _, best, i = state
    return (i < steps) & (best.loss >= _ENOUGH)

  def move(state):
    z, best, i = state
    loss, grad = jax.value_and_grad(loss_fn)(z)
    delta = jnp.clip(z - step * jnp.sign(grad) - start, -eps, eps)
    return jnp.clip(start + delta, 0, 1), keep(best, z, loss), i + 1

  first = loss_fn(start)
  state = (start, Mark(start, first, first), jnp.int32(0))
  z, best, _ = jax.lax.while_loop(goes_on, move, state)
  return keep(best, z, loss_fn(z))
