"""Selection: how far to prune, decided on images held out for it.

A pruning defense proposes candidates, the first of them untouched and each
harder than the one before; selection counts their hits and takes one.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, types

Selector = Literal['val', 'oracle']
SELECTORS = ('val', 'oracle')
OracleRule = Literal['least_asr', 'last_within']
ORACLES = ('least_asr', 'last_within')


class Tally(NamedTuple):
  """Counts of all candidates so far.

  Attributes:
    carry: what the candidates are made from.
    hits: int32 [k], correct on clean images.
    total: int32 [], clean images seen.
    attack_hits: int32 [k], sent to the attacker's class.
    attack_total: int32 [], triggered images seen.
  """

  carry: types.Carry
  hits: jax.Array
  total: jax.Array
  attack_hits: jax.Array
  attack_total: jax.Array


def one_by_one(
  classifier: types.Classifier,
  candidate: Callable[[types.Carry, jax.Array], types.ModelState],
  num: int,
) -> Callable[[types.Carry, jax.Array], jax.Array]:
  """Logits of all candidates by a forward pass of each.

  BN: frozen-BN.

  Args:
    classifier: the network.
    candidate: (carry, i) -> model; i = 0 is the model as it came.
    num: candidates, static.

  Returns:
    (carry, images [b, h, w, c]) -> logits [num, b, n].
  """

  def logits(carry, images):
    apply = lambda i: classifier.apply(candidate(carry, i), images)[0]
    return jax.lax.map(apply, jnp.arange(num))

  return logits


def selection(
  logits: Callable[[types.Carry, jax.Array], jax.Array],
  num: int,
  finish: Callable[[types.Carry, jax.Array, jax.Array], types.Carry],
  *,
  selector: Selector = 'val',
  oracle: OracleRule = 'least_asr',
  max_drop: float | jax.Array = 0.1,
  batch_size: int = 256,
) -> tuple[types.Phase, ...]:
  """Phases that try all candidates and take one.

    val:    the last candidate before accuracy on the held-out fifth of the
            clean set first falls by more than max_drop of its own value
    oracle: how published tables were made, no defender can do it; by method
            'least_asr', of the candidates whose clean *test* accuracy falls
            by less than max_drop, the one of least ASR on the triggered *test*
            set, or 'last_within', the rule of val on the clean *test* set

  Images that come again to fill the last batch are not counted twice.

  Args:
    logits: (carry, images) -> [num, b, n] of all candidates, the first of them
      the model as it came; see `one_by_one`.
    num: candidates, static.
    finish: (carry, i, accuracy [num]) -> Carry of the candidate taken.
    selector: 'val' or 'oracle'.
    oracle: the rule that was published.
    max_drop: tolerated relative loss of accuracy, in [0, 1], may be traced.
    batch_size: images at a time.

  Returns:
    One phase, 'select', or two for 'least_asr', 'select_clean' and 'select'.

  Raises:
    ValueError: for an unknown selector or rule, fewer than two candidates or a
      drop outside [0, 1].
  """
  checks.one_of(SELECTORS, selector=selector)
  checks.one_of(ORACLES, oracle=oracle)
  checks.unit_interval(max_drop=max_drop)
  checks.positive(batch_size=batch_size)
  if num < 2:
    raise ValueError(
      f'`num={num}` candidates leave nothing to select; give the untouched '
      'model and at least one other.'
    )
  by_asr = selector == 'oracle' and oracle == 'least_asr'

  def start(key: jax.Array, carry: types.Carry) -> Tally:
    del key
    zero, zeros = jnp.zeros((), jnp.int32), jnp.zeros((num,), jnp.int32)
    return Tally(carry, zeros, zero, zeros, zero)

  def count(tally: Tally, batch: types.Batch) -> tuple[Any, Any, Any]:
    """(hits [num], images, share of hits) of one batch."""
    guesses = jnp.argmax(logits(tally.carry, batch['image']), axis=-1)
    is_hit = (guesses == batch['label'][None]) & batch['mask'][None]
    hits = jnp.sum(is_hit, axis=1, dtype=jnp.int32)
    total = jnp.sum(batch['mask'], dtype=jnp.int32)
    return hits, total, jnp.mean(hits / total)

  def clean_step(tally, batch, clock):
    del clock
    hits, total, mean = count(tally, batch)
    tally = tally._replace(hits=tally.hits + hits, total=tally.total + total)
    return tally, {'accuracy': mean}

  def triggered_step(tally, batch, clock):
    del clock
    hits, total, mean = count(tally, batch)
    tally = tally._replace(
      attack_hits=tally.attack_hits + hits,
      attack_total=tally.attack_total + total,
    )
    return tally, {'asr': mean}

  def take(tally: Tally) -> types.Carry:
    accuracy = tally.hits / tally.total
    if by_asr:
      chosen = least_asr(
        accuracy, tally.attack_hits / tally.attack_total, max_drop
      )
    else:
      chosen = last_within(accuracy, max_drop)
    return finish(tally.carry, chosen, accuracy)

  length: dict[str, Any] = dict(
    num_epochs=1, batch_size=batch_size, drop_last=False, grad_passes=0
  )
  if not by_asr:
    reads = 'clean_val' if selector == 'val' else 'test_clean'
    return (
      types.Phase('select', start, clean_step, take, reads=reads, **length),
    )
  return (
    types.Phase(
      'select_clean',
      start,
      clean_step,
      # The tally travels to the next phase in place of the extra.
      lambda tally: types.Carry(model=tally.carry.model, extra=tally),
      reads='test_clean',
      **length,
    ),
    types.Phase(
      'select',
      lambda key, carry: carry.extra,
      triggered_step,
      take,
      reads='test_triggered',
      **length,
    ),
  )


def last_within(accuracy: jax.Array, max_drop: float | jax.Array) -> jax.Array:
  """The last candidate before accuracy first falls too far.

  Args:
    accuracy: [k], the first of the untouched model.
    max_drop: tolerated loss relative to the first.

  Returns:
    int32 [], 0 where already the second falls too far.

  Example:
    >>> int(last_within(jnp.array([0.9, 0.9, 0.85, 0.5, 0.9]), 0.1))
    2
  """
  is_within = accuracy >= (1 - max_drop) * accuracy[0] - 1e-6
  return jnp.sum(jnp.cumprod(is_within.astype(jnp.int32)), dtype=jnp.int32) - 1


def least_asr(
  accuracy: jax.Array, asr: jax.Array, max_drop: float | jax.Array
) -> jax.Array:
  """The candidate of least ASR among those that keep their accuracy.

  Args:
    accuracy: [k], the first of the untouched model.
    asr: [k].
    max_drop: loss relative to the first that is no longer tolerated.

  Returns:
    int32 []; the first of equals.
  """
  # Rounding must not let a loss of exactly max_drop pass.
  is_within = accuracy > (1 - max_drop) * accuracy[0] + 1e-6
  return jnp.argmin(jnp.where(is_within, asr, jnp.inf)).astype(jnp.int32)
