"""LMC: what lies on the straight line between two models.

  θ(t) = (1 − t)·θ_a + t·θ_b,    t in [0, 1]

With the backdoored model as a and the defended one as b, t = 0 is backdoored
and t = 1 is defended; any other pair will do (defended to retuned, defended
to clean). Two treatments of BatchNorm's running statistics:

  naive         mean and variance are interpolated like the weights; exact at
                the ends, but between them activations lose variance.
  recalibrated  statistics are estimated anew at every t from clean images,
                without labels (`surgery.reestimate_bn`); the default to plot.

Each point is built inside the mapped body, so that one interpolated model is
alive at a time (or `chunk` of them), never the whole path.

References:
  Min et al., Uncovering, Explaining, and Mitigating the Superficial Safety of
  Backdoor Defense, NeurIPS 2024. Its code of the path was not released: 21
  positions and the two treatments are ours.
  Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis,
  ICML 2020.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, surgery, tree, types

Evaluate = Callable[[types.Classifier, types.ModelState], types.PyTree]


def positions(num_points: int = 21) -> np.ndarray:
  """Evenly spaced float32 positions with 0 and 1 among them, exactly.

  Raises:
    ValueError: for less than the two ends.
  """
  if num_points < 2:
    raise ValueError(
      f'`num_points={num_points}` leaves out an end; a path has at least 2.'
    )
  return np.linspace(0, 1, num_points, dtype=np.float32)


def point(
  a: types.ModelState, b: types.ModelState, t: float | jax.Array
) -> types.ModelState:
  """The model at t, its running statistics interpolated too.

  Args:
    a: model at t = 0.
    b: model at t = 1, of the same shapes.
    t: position, may be traced.

  Returns:
    (1 − t)·a + t·b; exactly a at 0 and exactly b at 1 where both are finite.

  Raises:
    ValueError: naming the first leaf in which the models differ in shape.
  """
  mismatch = tree.describe_mismatch(a, b)
  if mismatch:
    raise ValueError(
      f'No straight path between these models: {mismatch}; both ends must '
      'share architecture and classes.'
    )
  return tree.interpolate(a, b, t)


def evaluate_at(
  classifier: types.Classifier,
  a: types.ModelState,
  b: types.ModelState,
  t: float | jax.Array,
  evaluate_fn: Evaluate,
  *,
  batches: jax.Array | None = None,
) -> dict[str, types.PyTree]:
  """Evaluates one point of the path under both treatments; jittable.

  Args:
    classifier: the model.
    a: model at t = 0.
    b: model at t = 1.
    t: position, may be traced.
    evaluate_fn: (classifier, state) -> tree of arrays, such as the counts of
      `eval.count`.
    batches: float images in [0, 1], [n, b, h, w, c], for the statistics; None
      = naive only.

  Returns:
    'naive' and, with batches, 'recalibrated': the evaluation at t.

  Raises:
    ValueError: if the models do not share their shapes.
  """
  state = point(a, b, t)
  if batches is None:
    return {'naive': evaluate_fn(classifier, state)}
  fresh = surgery.reestimate_bn(classifier, state, batches)
  # A loop of two, so that the evaluation is compiled once.
  naive, again = tree.unstack(
    jax.lax.map(
      lambda state: evaluate_fn(classifier, state), tree.stack([state, fresh])
    )
  )
  return {'naive': naive, 'recalibrated': again}


def evaluate_path(
  classifier: types.Classifier,
  a: types.ModelState,
  b: types.ModelState,
  evaluate_fn: Evaluate,
  *,
  batches: jax.Array | None = None,
  t=None,
  chunk: int = 1,
) -> dict[str, Any]:
  """Evaluates the whole path, point after point; jittable.

  Written for one pair; lift it over a stack of ends with
  `sweep.over_checkpoints`.

  Args:
    classifier: the model.
    a: model at t = 0, the backdoored one.
    b: model at t = 1, the defended one.
    evaluate_fn: (classifier, state) -> tree of arrays, such as the counts of
      `eval.count`.
    batches: float images in [0, 1], [n, b, h, w, c], for the statistics; None
      = naive only. The setting to report is 20 batches of 250.
    t: positions [k]; None = 21 evenly spaced ones.
    chunk: points evaluated at once; does not change the result.

  Returns:
    't' [k], 'naive' and, with batches, 'recalibrated': the evaluations with a
    leading axis k.

  Raises:
    ValueError: if the models do not share their shapes.

  Example:
    >>> a = types.ModelState(params={'w': jnp.zeros(())}, batch_stats={})
    >>> b = types.ModelState(params={'w': jnp.ones(())}, batch_stats={})
    >>> path = evaluate_path(
    ...   None, a, b, lambda _, state: state.params['w'] ** 2, t=positions(3))
    >>> path['naive'].tolist()
    [0.0, 0.25, 1.0]
  """
  checks.positive(chunk=chunk)
  t = jnp.asarray(positions() if t is None else t, jnp.float32)
  checks.unit_interval(t=t)
  k = t.shape[0]
  chunk = min(chunk, k)
  # Filled up to whole chunks: a remainder would be compiled a second time.
  rows = np.minimum(np.arange(-(-k // chunk) * chunk), k - 1)
  at = lambda t: evaluate_at(classifier, a, b, t, evaluate_fn, batches=batches)
  result = jax.lax.map(at, t[rows], batch_size=chunk if chunk > 1 else None)
  return {'t': t, **jax.tree.map(lambda x: x[:k], result)}
