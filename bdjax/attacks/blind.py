"""Blind: a trainer's loss holds a backdoor task besides its own.

With T the stamp of a small black and white pattern, r the label rule and h the
clean losses of the last batches, at most `history` of them:

  loss(x, y) = w_b·CE(f(T(x)), r(y)) + w_c·CE(f(x), y)   if h is full and
                                                         mean(h) < threshold
             = CE(f(x), y)                               otherwise

The weights are fixed or those of the shortest convex combination of the two
gradients, each divided by a norm of its own (MGDA).

1. Batches come as they are, augmented by the data set's recipe.
2. The clean loss of the batch is noted; what was noted before decides whether
   the backdoor task takes part.
3. A taking part means a pass over the stamped batch, with the labels the
   trigger leads to, and then one over the batch itself; one step on the sum.

Access:      the loss of the training alone; data and labels stay clean;
             data: every batch whole, there is no poisoning ratio;
             stage: training
Space:       pixel [0, 1]; white is 1 and black 0 in all channels
BN:          train-BN in both passes, the stamped one first; running statistics
             see stamped images only where the backdoor task takes part
Guarantees:  - until the history is full, and while its mean is not below the
               threshold, the loss is the clean one
             - what was noted before the batch decides, not its own loss
             - only the pattern's pixels change
             - poisoning leaves batches as they are
             - images stay in the unit interval
Divergences: - BackdoorBench normalizes the pattern by CIFAR-10's statistics on
               all data sets in training, by the data set's own in testing;
               here white is white in both.
             - The pattern lies in rows 3–7 and columns 23–25, in images that
               are too small for it as far down and right as they reach.
Cost:        two forward and backward passes per step, from the first one on,
             four backward passes with MGDA; a forward pass for what is noted,
             which a compiler may share with that of the loss; memory of two
             passes

Example:
  >>> spec = types.DataSpec(
  ...   name='toy', image_shape=(8, 8, 3), num_classes=4,
  ...   mean=(0., 0., 0.), std=(1., 1., 1.))
  >>> attack = blind(spec)
  >>> images, labels = np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4
  >>> state = attack.init(jax.random.key(0), images, labels)
  >>> grey = jnp.full((1, 8, 8, 3), 0.5)
  >>> stamped = attack.stamp(state, grey, jax.random.key(1), np.array([0]))
  >>> stamped[0, 3:, 5:, 0].tolist()[:3]
  [[1.0, 0.0, 1.0], [0.5, 1.0, 0.5], [0.5, 0.5, 0.0]]

References:
  Bagdasaryan & Shmatikov, Blind Backdoors in Deep Learning Models, USENIX
  Security 2021.
  ebagdasa/backdoors101
  SCLBD/BackdoorBench: attack/blind.py
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, optim, tree, types
from bdjax.attacks import pairing, pictures

BALANCES = ('fixed', 'mgda')
NORMALIZERS = ('loss+', 'loss', 'l2', 'none')

_FREE = np.nan
_PATTERN = np.array(
  [
    [1, 0, 1],
    [_FREE, 1, _FREE],
    [_FREE, _FREE, 0],
    [_FREE, 1, _FREE],
    [1, 0, 1],
  ]
)
_ROW, _COLUMN = 3, 23
_MOST = 10.0  # no loss or product with it counts for more


@types.hparams
class BlindHParams(pairing.PairHParams):
  """Hyper-parameters of Blind; the defaults are BackdoorBench's.

  Attributes:
    balance: 'fixed' weights, or 'mgda'.
    w_clean: w_c, weight of the clean task ('fixed').
    w_backdoor: w_b, weight of the backdoor task ('fixed').
    history: batches whose clean losses are remembered.
    threshold: mean clean loss below which the backdoor task takes part.
    mgda_normalize: what a task's gradient g is divided by: 'l2' ‖g‖, 'loss'
      min(loss, 10), 'loss+' min(loss·‖g‖, 10) or 'none'.
  """

  balance: str = 'fixed'
  w_clean: float = 1.0
  w_backdoor: float = 0.9
  history: int = 1000
  threshold: float = 1.0
  mgda_normalize: str = 'loss+'


def blind(
  spec: types.DataSpec,
  hp: BlindHParams | None = None,
  assets: Mapping[str, Any] | None = None,
) -> types.Attack:
  """Makes the attack.

  Args:
    spec: shape and classes of the data set.
    hp: hyper-parameters; `w_clean`, `w_backdoor` and `threshold` may be traced.
    assets: none are taken.

  Returns:
    The attack; what it remembers is {'losses': float32 [history], 'count':
    int32 [], batches so far, 'active': bool [], whether the backdoor task takes
    part}. The trigger itself has no parameters.

  Raises:
    UnknownName: for any asset.
    ValueError: if images are smaller than the pattern, or a hyper-parameter is
      out of range.
  """
  hp = hp or BlindHParams()
  pictures.from_assets(assets, '', ())
  checks.one_of(BALANCES, balance=hp.balance)
  checks.one_of(NORMALIZERS, mgda_normalize=hp.mgda_normalize)
  checks.positive(history=hp.history)
  checks.non_negative(
    w_clean=hp.w_clean, w_backdoor=hp.w_backdoor, threshold=hp.threshold
  )
  rule, pattern = pairing.relabel_rule(spec, hp), _pattern(spec.image_shape)
  paint = lambda images: jnp.where(jnp.isnan(pattern), images, pattern)

  def update(state, classifier, model, batch, key):
    del key
    clean = pairing.forward(classifier, model, batch['image'], batch['label'])
    trigger = _note(state.trigger, clean.loss, hp.threshold)
    return dataclasses.replace(state, trigger=trigger), {'clean': clean.loss}

  def objective(state, classifier, model, batch, key):
    del key
    is_active = state.trigger['active']
    stamped, goal = paint(batch['image']), rule.apply(batch['label'])

    def tasks(params):
      """The two passes; running statistics go through both while active."""
      model_here = dataclasses.replace(model, params=params)
      backdoor = pairing.forward(classifier, model_here, stamped, goal)
      stats = jax.tree.map(
        lambda new, old: jnp.where(is_active, new, old),
        backdoor.model.batch_stats,
        model.batch_stats,
      )
      start = dataclasses.replace(model_here, batch_stats=stats)
      clean = pairing.forward(classifier, start, batch['image'], batch['label'])
      return backdoor, clean

    backdoor, clean = tasks(model.params)
    w_backdoor, w_clean = hp.w_backdoor, hp.w_clean
    if hp.balance == 'mgda':
      w_backdoor, w_clean = _shortest(tasks, model.params, hp.mgda_normalize)
    joint = w_backdoor * backdoor.loss + w_clean * clean.loss
    loss = jnp.where(is_active, joint, clean.loss)
    return loss, (clean.logits, clean.model)

  parts = pairing.Parts(
    init=lambda key, num: _unwritten(hp.history),
    stamp=lambda params, images, key, index: paint(images),
    objective=objective,
    update=update,
  )
  return pairing.from_parts('blind', spec, rule, parts)


def _pattern(image_shape) -> np.ndarray:
  """[1, h, w, 1]; NaN where the image shows."""
  height, width, _ = image_shape
  rows, columns = _PATTERN.shape
  if height < rows or width < columns:
    raise ValueError(
      f'The pattern of {rows}×{columns} pixels does not fit into {height}×'
      f'{width} images; use larger ones.'
    )
  row, column = min(_ROW, height - rows), min(_COLUMN, width - columns)
  whole = np.full((1, height, width, 1), _FREE, np.float32)
  whole[0, row : row + rows, column : column + columns, 0] = _PATTERN
  return whole


def _unwritten(history: int) -> dict[str, jax.Array]:
  """The memory before the first batch."""
  return {
    'losses': jnp.zeros(history),
    'count': jnp.zeros((), jnp.int32),
    'active': jnp.zeros((), bool),
  }


def _note(memory, loss, threshold) -> dict[str, jax.Array]:
  """Decides by what is noted, then notes one more loss."""
  losses, count = memory['losses'], memory['count']
  is_full = count >= len(losses)
  return {
    'losses': losses.at[count % len(losses)].set(loss),
    'count': count + 1,
    'active': is_full & (jnp.mean(losses) < threshold),
  }


def _shortest(tasks, params, normalizer: str) -> tuple[jax.Array, jax.Array]:
  """(backdoor, clean) weights of the shortest mean of the tasks' gradients."""
  params = jax.lax.stop_gradient(params)
  grads = []
  for i in range(2):
    loss, grad = jax.value_and_grad(lambda p, i=i: tasks(p)[i].loss)(params)
    size = _size(normalizer, loss, grad) + 1e-5
    grads.append(tree.scale(1 / size, grad))
  weight = optim.min_norm_weight(*grads)
  return weight, 1 - weight


def _size(normalizer: str, loss, grad) -> jax.Array:
  """What a task's gradient is divided by."""
  return {
    'none': lambda: jnp.ones(()),
    'l2': lambda: tree.norm(grad),
    'loss': lambda: jnp.minimum(loss, _MOST),
    'loss+': lambda: jnp.minimum(loss * tree.norm(grad), _MOST),
  }[normalizer]()
