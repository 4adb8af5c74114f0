"""What the loop compiles: a phase's beginning, its chunks of steps, its end.

A part of a phase is a pure function of one model, of the keys of the phase and
of what it reads. Here it is lifted to a stack and kept, so that runs of the
same phases share what has been compiled. The state of a single model is handed
over to a chunk of steps, which returns the next one in its place.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import keys, types
from bdjax.training import feed as feeding
from bdjax.training import spread

# What phases have been compiled to, by the functions they are made of.
Programs = dict[tuple, Callable[..., Any]]


class Compiler(NamedTuple):
  """How the parts of a run's phases are lifted and compiled.

  Attributes:
    key: root key of the run, or keys [m].
    augment: the data set's recipe.
    lift: turns a function of one model into that of a stack; None = one model.
    own_feeds: whether the feeds of a stack have a leading axis m.
    mesh: devices that share a single model's batches.
    programs: what has been compiled.
  """

  key: jax.Array
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None
  lift: Callable[..., Callable] | None
  own_feeds: bool
  mesh: jax.sharding.Mesh | None
  programs: Programs

  def lifted(self, i, part, lift=None) -> Callable[..., Any]:
    """Lifts a part of phase i to a function of (member, feed, *rest).

    Keys and feeds of each member's own travel with the member; what is the
    same for all stays shared, so that batches are gathered and augmented once.

    Args:
      i: number of the phase.
      part: `init(phase)`, `finish(phase)` or a `chunk`.
      lift: in place of the run's own.
    """
    phase_keys = _phase_keys(self.key, i)
    lift = lift or self.lift or (_in_place if part[0] is _scan else jax.jit)
    if (part, lift) not in self.programs:
      make, *static = part
      self.programs[part, lift] = lift(_unpacked(make(*static)))
    inner = self.programs[part, lift]

    def call(member, feed=None, *rest):
      own: dict[str, Any] = {'member': member}
      shared: dict[str, Any] = {'rest': rest}
      (own if self.key.ndim else shared)['keys'] = phase_keys
      (own if self.own_feeds and feed is not None else shared)['feed'] = feed
      return inner(own, shared)

    return call

  def chunk(self, phase, plan, length) -> tuple:
    """The part of a phase that takes `length` steps: (state, metrics)."""
    augment = self.augment if phase.augment is True else phase.augment or None
    return _scan, phase, augment, self.mesh, plan, length

  def abstract(self, i, part, member, *rest) -> Any:
    """Shapes of a lifted part's result."""
    lift = _vmap_first if self.lift is not None else _identity
    return jax.eval_shape(self.lifted(i, part, lift), member, *rest)


def init(phase: types.Phase) -> tuple:
  """The part of a phase that turns a carry into its state."""
  return _init, phase


def finish(phase: types.Phase) -> tuple:
  """The part of a phase that turns its state into a carry."""
  return _finish, phase


def _phase_keys(key: jax.Array, i: int) -> dict[str, jax.Array]:
  """The streams of phase i; key may be one key or keys [m].

  They are derived outside the compiled programs, each of which would otherwise
  carry a dozen copies of the generator.
  """

  def derive(key):
    phase_key = keys.at(keys.stream(key, 'phase'), i)
    names = ('init', 'order', 'augment', 'step')
    return {name: keys.stream(phase_key, name) for name in names}

  return derive(key) if key.ndim == 0 else jax.vmap(derive)(key)


# What is a single model's own is its state alone. It never holds the caller's
# buffers: a compiled beginning returns copies of what it passes on.
_in_place = functools.partial(jax.jit, donate_argnums=0)


def _identity(fn):
  return fn


def _unpacked(fn):
  """The same function of what is a member's own and what all share."""

  def unpacked(own, shared):
    both = own | shared
    return fn(both['keys'], own['member'], both['feed'], *shared['rest'])

  return unpacked


def _vmap_first(fn):
  """Vmap over the first argument alone."""

  def lifted(member, *shared):
    return jax.vmap(lambda m: fn(m, *shared))(member)

  return lifted


def _init(phase):
  return lambda phase_keys, carry, feed: phase.init(phase_keys['init'], carry)


def _finish(phase):
  return lambda phase_keys, state, feed: phase.finish(state)


def _scan(phase, augment, mesh, plan, length):
  """One chunk of one phase for one model, as a pure function."""

  def scan(phase_keys, state, feed, start):
    rows = None
    if feed is not None:
      rows = feeding.batch_rows(
        phase_keys['order'],
        start,
        length,
        plan.n,
        plan.size,
        plan.per_epoch,
      )

    def body(state, inputs):
      step, row = inputs
      row = spread.split(mesh, row)
      batch = {}
      if feed is not None:
        augment_key = keys.at(phase_keys['augment'], step)
        place = step % plan.per_epoch * plan.size + jnp.arange(plan.size)
        batch = feeding.fetch(
          feed, row, augment_key, augment, mask=place < plan.n
        )
        batch = spread.split(mesh, batch)
      clock = types.Clock(
        key=keys.at(phase_keys['step'], step),
        step=step,
        epoch=step // plan.per_epoch,
        num_steps=plan.num_steps,
        num_epochs=plan.num_epochs,
      )
      return spread.whole(mesh, phase.step(state, batch, clock))

    steps = start + jnp.arange(length, dtype=jnp.int32)
    return jax.lax.scan(body, state, (steps, rows))

  return scan
