"""A smooth universal pattern that pushes images towards one class (for LF).

v starts at 0. For each of the images, pass after pass in a new order, where
the class of x + v is still that of x:

  v ← v + G(r);   v ← G(v);   v ← peak · (v − min v) / (max v − min v)

with r the DeepFool step from x + v to the target, if it converged, and G a
Gaussian low-pass. After a pass the share of held-out images whose class v
changes is measured; enough of it, or five passes without news, end it. Images
with v are clipped wherever their class is asked for; the walk is not.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, perturb, types
from bdjax.attacks.triggers import low_pass

_WINDOW = 5  # passes that must agree
_STILL = 0.01  # the width of what counts as agreement


class Search(NamedTuple):
  """The pattern and how it was found.

  Attributes:
    pattern: float32 [h, w, c] in [0, peak].
    fooling: share of held-out images whose class it changes, float32 [].
    passes: passes that were made, int32 [].
  """

  pattern: jax.Array
  fooling: jax.Array
  passes: jax.Array


def search(
  key: jax.Array,
  classifier: types.Classifier,
  model: types.ModelState,
  images: types.Images,
  held_out: types.Images,
  target: int,
  *,
  peak: float,
  fooling_rate: float,
  max_passes: int,
  max_steps: int = 200,
) -> Search:
  """Searches the pattern; one program, passes and images in it.

  Args:
    key: typed key of the passes' orders.
    classifier: the network.
    model: a clean model, in eval mode throughout.
    images: float [n, h, w, c] in [0, 1] that the pattern is made on.
    held_out: float [k, h, w, c] that judge it.
    target: class t.
    peak: largest value of the pattern, in [0, 1] units.
    fooling_rate: share of held-out images that is enough.
    max_passes: over the images.
    max_steps: of one DeepFool walk.

  Returns:
    The pattern and its fooling rate.

  Raises:
    ValueError: if a count is not positive, or a share outside [0, 1].
  """
  checks.typed_key(key=key)
  checks.positive(max_passes=max_passes, max_steps=max_steps)
  checks.unit_interval(peak=peak, fooling_rate=fooling_rate)

  return _search(
    model,
    images,
    held_out,
    key,
    jnp.int32(target),
    peak,
    fooling_rate,
    classifier=classifier,
    max_passes=max_passes,
    max_steps=max_steps,
  )


@functools.partial(
  jax.jit, static_argnames=('classifier', 'max_passes', 'max_steps')
)
def _search(
  model,
  images,
  held_out,
  key,
  target,
  peak,
  enough,
  *,
  classifier,
  max_passes,
  max_steps,
) -> Search:
  """`search`, compiled once for a network."""
  predict = lambda x: classifier.apply(model, x)[0]
  classes = lambda x: jnp.argmax(predict(x), -1)
  before = classes(held_out)

  def fooled(v):
    after = classes(jnp.clip(held_out + v[None], 0, 1))
    return jnp.mean((after != before).astype(jnp.float32))

  def one_pass(state):
    v, recent, passes = state
    order = jax.random.permutation(jax.random.fold_in(key, passes), len(images))
    step = lambda v, x: (push(predict, v, x, target, peak, max_steps), None)
    v, _ = jax.lax.scan(step, v, images[order])
    return v, jnp.roll(recent, -1).at[-1].set(fooled(v)), passes + 1

  def goes_on(state):
    _, recent, passes = state
    is_enough = (passes > 0) & (recent[-1] >= enough)
    is_still = (passes >= _WINDOW) & (jnp.ptp(recent) < _STILL)
    return ~is_enough & ~is_still & (passes < max_passes)

  start = (jnp.zeros(images.shape[1:]), jnp.zeros(_WINDOW), jnp.int32(0))
  v, recent, passes = jax.lax.while_loop(goes_on, one_pass, start)
  return Search(v, recent[-1], passes)


def push(
  predict: Callable[[jax.Array], jax.Array],
  v: jax.Array,
  image: types.Image,
  target: int | jax.Array,
  peak: float,
  max_steps: int,
) -> jax.Array:
  """What one image makes of the pattern.

  Args:
    predict: images [b, h, w, c] -> logits.
    v: the pattern so far, [h, w, c].
    image: float [h, w, c].
    target: class t.
    peak: largest value of the pattern.
    max_steps: of the DeepFool walk; the last but one must have arrived.

  Returns:
    The pattern, smoothed and stretched anew, or as it was.
  """
  single = lambda x: predict(x[None])[0]

  def walk(v):
    r, converged, steps = perturb.deepfool(
      single, image + v, target, max_steps=max_steps
    )
    pushed = low_pass.low_pass(v + low_pass.low_pass(r))
    is_taken = converged & (steps < max_steps - 1)
    return jnp.where(is_taken, low_pass.stretch(pushed, peak), v)

  both = jnp.stack([image, jnp.clip(image + v, 0, 1)])
  both = jnp.argmax(predict(both), -1)
  return jax.lax.cond(both[0] == both[1], walk, lambda v: v, v)
