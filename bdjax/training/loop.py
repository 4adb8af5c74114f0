"""The one loop: any tuple of phases, scanned by chunks, over one or many.

Nothing else in the library iterates over steps. A run is a function of
(phases, carry, feeds, key) alone: neither the chunk length nor a restart nor
the number of models beside it changes a number.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, types
from bdjax.training import feed as feeding
from bdjax.training import finite, programs, spread
from bdjax.training import plan as planning


class ChunkReport(NamedTuple):
  """What the loop tells its caller after each chunk.

  Attributes:
    phase: the phase's name.
    step: steps of this phase done so far.
    num_steps: steps of this phase in all.
    metrics: this chunk's metrics, host arrays [steps] or [m, steps].
    seconds: wall time of the chunk; a phase's first includes compilation.
  """

  phase: str
  step: int
  num_steps: int
  metrics: types.Metrics
  seconds: float


class Snapshots(Protocol):
  """Where the loop keeps its own state, so that a killed run goes on."""

  def save(self, position: dict[str, int], tree: types.PyTree) -> None:
    """Replaces the snapshot; a kill at any moment leaves one intact."""

  def load_position(self) -> dict[str, int] | None:
    """Position of the last intact snapshot, None where there is none."""

  def load(self, abstract: types.PyTree) -> types.PyTree:
    """The last intact snapshot."""


class _Run(NamedTuple):
  """What stays the same during a run; see `run_phases`."""

  compiler: programs.Compiler
  chunk: int | None
  names: Sequence[str] | None
  on_chunk: Callable[[ChunkReport], None] | None
  snapshots: Snapshots | None
  snapshot_seconds: float

  @property
  def stacked(self) -> bool:
    """Whether it runs a stack of models."""
    return self.compiler.lift is not None


class _Position(NamedTuple):
  """Where a run stands: in a phase (`state`) or before one (`carry`)."""

  phase: int
  step: int
  carry: types.Carry
  state: Any
  history: dict[str, types.Metrics]


def run_phases(
  phases: Sequence[types.Phase],
  carry: types.Carry,
  feeds: Mapping[str, feeding.Feed],
  key: jax.Array,
  *,
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
  lift: Callable[..., Callable] | None = None,
  chunk: int | None = None,
  own_feeds: bool = False,
  compiled: programs.Programs | None = None,
  names: Sequence[str] | None = None,
  on_chunk: Callable[[ChunkReport], None] | None = None,
  snapshots: Snapshots | None = None,
  snapshot_seconds: float = 15.0,
  devices: Sequence[jax.Device] | None = None,
) -> tuple[types.Carry, dict[str, types.Metrics]]:
  """Runs phases one after another.

  Without `on_chunk` and `snapshots` it may be traced as a whole: jitted,
  vmapped over models, seeds and float hyper-parameters.

  Args:
    phases: what to run; each starts from its predecessor's `Carry`.
    carry: the model to start from; a stack where `lift` is given.
    feeds: for each of 'clean', 'train', 'pool' that is read, its `Feed`.
    key: typed root key of the run, shared by all models of a stack; or keys
      [m], one for each.
    augment: the data set's recipe, (images, keys [b]) -> images, for phases
      that ask for it by `augment=True`.
    lift: turns fn(member, *shared) into a function of a stack, such as
      `sweep.lift` does; None = a single model.
    chunk: steps per dispatch; None = `plan.usual_chunk` where somebody
      listens, else the whole phase.
    own_feeds: whether every leaf of the feeds has a leading axis m too, one
      feed for each model of the stack.
    compiled: programs of earlier runs, for those with the very same phases,
      `augment` and `lift`; filled on the way. None = all is compiled anew.
    names: names of the models, for messages.
    on_chunk: called after every chunk with a `ChunkReport`.
    snapshots: where to keep the run's state and to resume it from.
    snapshot_seconds: least time between two snapshots within a phase.
    devices: where to spread each batch of a single model; None = the default
      device alone.

  Returns:
    The final carry, and {phase name: {metric: [steps] or [m, steps]}}.

  Raises:
    ValueError: if a phase reads a feed that is not given, or if devices are
      given that cannot share its batches evenly, or given with `lift`.
    NonFiniteError: if a single model's metrics leave the finite numbers; a
      stack goes on, `finite_members` tells who failed.
  """
  checks.typed_key(key=key)
  if lift is not None and devices is not None:
    raise ValueError(
      '`devices` spreads the batches of a single model; a stack is spread by '
      "`lift`, with types.Exec(mode='shard')."
    )
  mesh = spread.mesh_of(devices, phases, feeds)
  compiler = programs.Compiler(
    key, augment, lift, own_feeds, mesh, {} if compiled is None else compiled
  )
  run = _Run(compiler, chunk, names, on_chunk, snapshots, snapshot_seconds)
  feeds = spread.place(mesh, dict(feeds))
  at = _resume(run, phases, carry, feeds)
  at = at._replace(
    carry=spread.place(mesh, at.carry), state=spread.place(mesh, at.state)
  )
  for i, phase in enumerate(phases):
    if i < at.phase:
      continue
    state, history = _run_phase(
      run, i, phase, planning.feed_of(phase, feeds), at
    )
    carry = compiler.lifted(i, programs.finish(phase))(state)
    at = _Position(i + 1, 0, carry, None, history)
    if i + 1 < len(phases):
      _save(run, i + 1, 0, carry, history)
  return at.carry, at.history


def _run_phase(run, i, phase, feed, at):
  """All remaining steps of one phase; returns its state and the history."""
  plan, compiler = planning.plan(phase, feed), run.compiler
  state, step, history = at.state, at.step, at.history
  if state is None:
    state = compiler.lifted(i, programs.init(phase))(at.carry)
  listened = run.on_chunk is not None or run.snapshots is not None
  wanted = run.chunk or (
    planning.usual_chunk(phase, plan) if listened else None
  )
  length = planning.chunk_length(plan.num_steps, wanted)
  scans, saved = {}, time.monotonic()
  while step < plan.num_steps:
    began = time.monotonic()
    now = min(length, plan.num_steps - step)
    if now not in scans:
      scans[now] = compiler.lifted(i, compiler.chunk(phase, plan, now))
    state, metrics = scans[now](state, feed, jnp.int32(step))
    metrics = _on_host(run, phase, step, metrics)
    history = _append(history, phase.name, metrics, run.stacked)
    step += now
    if run.on_chunk is not None:
      seconds = time.monotonic() - began
      run.on_chunk(
        ChunkReport(phase.name, step, plan.num_steps, metrics, seconds)
      )
    if _is_done(phase, metrics):
      history = _fill(history, phase.name, plan.num_steps)
      break
    due = time.monotonic() - saved >= run.snapshot_seconds
    if due and step < plan.num_steps:
      _save(run, i, step, state, history)
      saved = time.monotonic()
  return state, history


def _on_host(run, phase, step, metrics):
  """Metrics as NumPy arrays, checked; left alone inside a trace."""
  if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(metrics)):
    return metrics
  metrics = jax.tree.map(np.asarray, metrics)
  if not run.stacked:
    finite.require_finite(metrics, phase.name, step, run.names)
  return metrics


def _append(history, name, metrics, stacked):
  """Concatenates a chunk's metrics to its phase's along the step axis."""
  if name not in history:
    return {**history, name: metrics}
  axis = 1 if stacked else 0

  def join(old, new):
    xp = np if isinstance(new, np.ndarray) else jnp
    return xp.concatenate([old, new], axis)

  return {**history, name: jax.tree.map(join, history[name], metrics)}


def _is_done(phase, metrics) -> bool:
  """Whether further steps would change no model; unknown inside a trace."""
  if not phase.done:
    return False
  last = metrics[phase.done][..., -1]
  return isinstance(last, np.ndarray | np.generic) and bool(np.all(last))


def _fill(history, name, num_steps):
  """Repeats a phase's last metrics, as the steps left out would have."""

  def filled(x):
    left = num_steps - x.shape[-1]
    return np.concatenate([x, np.repeat(x[..., -1:], left, -1)], -1)

  return {**history, name: jax.tree.map(filled, history[name])}


def _save(run, phase, step, state, history):
  """Keeps a snapshot where the caller wants any."""
  if run.snapshots is not None:
    tree = {'state': state, 'history': history}
    run.snapshots.save({'phase': phase, 'step': step}, tree)


def _resume(run, phases, carry, feeds) -> _Position:
  """The last snapshot's position, or the beginning."""
  position = run.snapshots.load_position() if run.snapshots else None
  if position is None:
    return _Position(0, 0, carry, None, {})
  phase, step = position['phase'], position['step']
  tree = run.snapshots.load(_abstract(run, phases, carry, feeds, phase, step))
  history = jax.tree.map(np.asarray, tree['history'])
  if step == 0:  # between two phases a snapshot holds the carry
    return _Position(phase, 0, tree['state'], None, history)
  return _Position(phase, step, carry, tree['state'], history)


def _abstract(run, phases, carry, feeds, at_phase, at_step):
  """Shapes of a snapshot taken at a position."""
  history: dict[str, Any] = {}
  compiler = run.compiler
  for i, phase in enumerate(phases[: at_phase + 1]):
    if i == at_phase and at_step == 0:
      break
    feed = planning.feed_of(phase, feeds)
    plan = planning.plan(phase, feed)
    state = compiler.abstract(i, programs.init(phase), carry)
    length = at_step if i == at_phase else plan.num_steps
    if length:
      chunk = compiler.chunk(phase, plan, length)
      state, history[phase.name] = compiler.abstract(
        i, chunk, state, feed, jnp.int32(0)
      )
    carry = state
    if i < at_phase:
      carry = compiler.abstract(i, programs.finish(phase), state)
  return {'state': carry, 'history': history}
