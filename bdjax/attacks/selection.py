"""Selection: which training examples are poisoned.

The number of poisoned examples is static, a ratio of the *whole* training set
rounded half to even; which ones they are is random. Both generators draw a
prefix of one order, so that the sets of smaller ratios lie within those of
larger ones.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8

from bdjax import checks, types

INDEX_RNGS = ('jax', 'numpy_legacy')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """What to poison; all of it static.

  Attributes:
    poison_ratio: poisoned / whole training set, also for one class.
    num_poison: explicit number of examples, overrides the ratio.
    only_class: the one class to choose from (clean-label attacks); None = all.
    index_rng: 'jax' draws from the key, can be vmapped over seeds;
      'numpy_legacy' draws on the host from `seed` alone, which reproduces
      indices of published PyTorch runs.
    seed: of 'numpy_legacy'.

  Raises:
    ValueError: if a value is out of range.
  """

  poison_ratio: float = 0.1
  num_poison: int | None = None
  only_class: int | None = None
  index_rng: str = 'jax'
  seed: int = 0

  def __post_init__(self):
    checks.one_of(INDEX_RNGS, index_rng=self.index_rng)
    checks.non_negative(num_poison=self.num_poison)
    if self.num_poison is None:
      checks.fraction(poison_ratio=self.poison_ratio)


def num_selected(selection: Selection, num_examples: int) -> int:
  """Number of poisoned examples in a training set.

  Args:
    selection: what to poison.
    num_examples: size N of the whole training set.

  Returns:
    `num_poison` if given, else poison_ratio·N rounded half to even.

  Raises:
    ValueError: if that is more than N, or a ratio that rounds to nothing.

  Example:
    >>> num_selected(Selection(poison_ratio=0.1), 39209)
    3921
  """
  if selection.num_poison is not None:
    if selection.num_poison > num_examples:
      raise ValueError(
        f'`num_poison={selection.num_poison}` exceeds the {num_examples} '
        'examples of the training set; lower it.'
      )
    return selection.num_poison
  number = round(selection.poison_ratio * num_examples)
  if number == 0:
    raise ValueError(
      f'`poison_ratio={selection.poison_ratio}` of {num_examples} examples '
      'rounds to 0; raise it or give `num_poison`.'
    )
  return number


def draw(
  selection: Selection, key: jax.Array, labels: types.Labels
) -> Int8[Array, ' N']:
  """Draws the poisoned examples.

  Args:
    selection: what to poison.
    key: typed key; not used by 'numpy_legacy'.
    labels: int [N], labels of the training set. With `only_class` they must
      be known outside of any trace, because the size of the class is checked.

  Returns:
    int8 [N], types.POISONED for exactly `num_selected` examples, else CLEAN.

  Raises:
    TypeError: if `only_class` is set and labels are traced.
    ValueError: if more examples are asked for than there are.

  Example:
    >>> labels = np.array([0, 1, 0, 1])
    >>> half = Selection(poison_ratio=0.5, only_class=1)
    >>> draw(half, jax.random.key(0), labels).tolist()
    [0, 1, 0, 1]
  """
  checks.typed_key(key=key)
  num_examples = np.shape(labels)[0]
  number = num_selected(selection, num_examples)
  candidates = _candidates(selection, labels, number)
  if selection.index_rng == 'numpy_legacy':
    chosen = _legacy_choice(candidates, number, selection.seed)
  else:
    chosen = _smallest(key, candidates, number)
  kind = jnp.full(num_examples, types.CLEAN, jnp.int8)
  return kind.at[chosen].set(types.POISONED)


def _candidates(selection: Selection, labels, number: int) -> np.ndarray:
  """Who may be chosen, bool [N]; refuses what the class cannot give."""
  if selection.only_class is None:
    return np.ones(np.shape(labels), bool)
  if not checks.is_concrete(labels):
    raise TypeError(
      '`labels` are traced, but a clean-label attack has to see how many '
      f'examples class {selection.only_class} has; close over the labels '
      'instead of passing them through jax.jit.'
    )
  candidates = np.asarray(labels) == selection.only_class
  size = int(candidates.sum())
  if number > size:
    raise ValueError(
      f'{number} poisoned examples are asked for, but class '
      f'{selection.only_class} has only {size} of the {len(candidates)}; '
      'ratios are fractions of the whole training set: use `poison_ratio` ≤ '
      f'{size / len(candidates):.6g} or `num_poison` ≤ {size}.'
    )
  return candidates


def _smallest(key, candidates: np.ndarray, number: int) -> jax.Array:
  """The candidates with the smallest of one random number per example."""
  bits = jax.random.bits(key, candidates.shape)
  # Candidates first, by their numbers; lexsort's last key decides first.
  return jnp.lexsort((bits, jnp.asarray(~candidates)))[:number]


def _legacy_choice(
  candidates: np.ndarray, number: int, seed: int
) -> np.ndarray:
  """NumPy's legacy `choice`, the order in which published runs drew."""
  generator = np.random.RandomState(seed)
  return generator.choice(np.flatnonzero(candidates), number, replace=False)
