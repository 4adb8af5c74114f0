"""The loop: chunking, stacks, restarts, finite checks, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import training, types
from bdjax.training import plan as planning
from bdjax.training import programs


def _carry(w=0.0):
  params = {'w': jnp.full((3,), w, jnp.float32)}
  model = types.ModelState(params=params, batch_stats={})
  return types.Carry(model=model, extra={})


def _walk(name='walk', **length):
  """Adds the batch's mean image and some noise to w; keeps Σ of epochs."""

  def init(key, carry):
    noise = jax.random.normal(key, (3,))
    return carry.model.params['w'] + 0.01 * noise, jnp.int32(0)

  def step(state, batch, clock):
    w, epochs = state
    noise = jax.random.normal(clock.key, (3,))
    w = w + 0.1 * noise + jnp.mean(batch['image'])
    return (w, epochs + clock.epoch), {'norm': jnp.linalg.norm(w)}

  def finish(state):
    model = types.ModelState(params={'w': state[0]}, batch_stats={})
    return types.Carry(model=model, extra={'epochs': state[1]})

  base = dict(num_epochs=3, batch_size=4, reads='clean', drop_last=False)
  return types.Phase(name, init, step, finish, **{**base, **length})


def _feeds(n=10):
  images = np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3)
  return {'clean': training.make_feed(images, np.arange(n) % 3)}


class Memory:
  """Snapshots in memory; `dies_at` plays the kill."""

  def __init__(self, dies_at=None):
    self.position, self.tree, self.saves = None, None, 0
    self.dies_at = dies_at

  def save(self, position, tree):
    self.position, self.tree = position, jax.tree.map(np.asarray, tree)
    self.saves += 1
    if self.saves == self.dies_at:
      raise KeyboardInterrupt

  def load_position(self):
    return self.position

  def load(self, abstract):
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
    found = jax.tree.map(lambda x: (x.shape, x.dtype), self.tree)
    assert expected == found, (expected, found)
    return jax.tree.map(jnp.asarray, self.tree)


def _until(limit):
  """Counts up to `limit`, then changes nothing any more."""

  def step(count, batch, clock):
    count = jnp.minimum(count + 1, limit)
    return count, {'count': count, 'over': count == limit}

  return types.Phase(
    'count',
    lambda key, carry: carry.extra,
    step,
    lambda count: types.Carry(model=_carry().model, extra=count),
    num_steps=12,
    done='over',
  )


class DoneTest(parameterized.TestCase):
  def _run(self, limit, **kwargs):
    carry = types.Carry(model=_carry().model, extra=jnp.int32(0))
    return training.run_phases(
      (_until(limit),), carry, {}, jax.random.key(0), **kwargs
    )

  @parameterized.parameters(4, 5, 30)
  def test_leaving_out_the_rest_changes_no_number(self, limit):
    reports = []
    carry, history = self._run(limit, on_chunk=reports.append, chunk=4)
    whole, full = self._run(limit)
    self.assertLen(reports, {4: 1, 5: 2, 30: 3}[limit])
    self.assertEqual(int(carry.extra), int(whole.extra))
    for name in ('count', 'over'):
      np.testing.assert_array_equal(history['count'][name], full['count'][name])

  def test_a_stack_goes_on_until_all_are_done(self):
    reports = []
    carry = types.Carry(
      model=jax.tree.map(lambda x: jnp.stack([x, x]), _carry().model),
      extra=jnp.asarray([0, -7]),
    )
    _, history = training.run_phases(
      (_until(3),),
      carry,
      {},
      jax.random.key(0),
      lift=_vmapped,
      chunk=2,
      on_chunk=reports.append,
    )
    self.assertLen(reports, 5)
    np.testing.assert_array_equal(
      history['count']['count'][1], np.minimum(np.arange(12) - 6, 3)
    )


def _vmapped(fn):
  """A lift: maps the first argument."""
  return lambda member, *rest: jax.vmap(lambda m: fn(m, *rest))(member)


class RunPhasesTest(parameterized.TestCase):
  phases = (_walk('first'), _walk('second', num_epochs=2, drop_last=True))

  def _run(self, **kwargs):
    return training.run_phases(
      self.phases, _carry(), _feeds(), jax.random.key(0), **kwargs
    )

  @parameterized.parameters(1, 5)
  def test_chunks_do_not_change_a_number(self, chunk):
    carry, metrics = self._run()
    other, others = self._run(chunk=chunk)
    np.testing.assert_array_equal(
      carry.model.params['w'], other.model.params['w']
    )
    for name in ('first', 'second'):
      np.testing.assert_allclose(
        metrics[name]['norm'], others[name]['norm'], rtol=1e-6
      )

  def test_lengths(self):
    carry, metrics = self._run()
    self.assertEqual(metrics['first']['norm'].shape, (9,))
    self.assertEqual(metrics['second']['norm'].shape, (4,))
    self.assertEqual(int(carry.extra['epochs']), 2)  # 0+0+1+1

  def test_jitted_as_a_whole_equals_driven(self):
    fn = jax.jit(
      lambda carry, key: training.run_phases(self.phases, carry, _feeds(), key)[
        0
      ]
    )
    np.testing.assert_allclose(
      fn(_carry(), jax.random.key(0)).model.params['w'],
      self._run()[0].model.params['w'],
      rtol=1e-6,
    )

  @parameterized.parameters(False, True)
  def test_stack_equals_singles(self, own_keys):
    lift = lambda fn: jax.jit(
      lambda member, *shared: jax.vmap(lambda m: fn(m, *shared))(member)
    )
    stack = jax.tree.map(lambda *x: jnp.stack(x), _carry(0.0), _carry(1.0))
    key = jax.random.key(3)
    keys = jax.random.split(key, 2) if own_keys else key
    carry, metrics = training.run_phases(
      self.phases, stack, _feeds(), keys, lift=lift, chunk=2
    )
    self.assertEqual(metrics['first']['norm'].shape, (2, 9))
    for i, w in enumerate((0.0, 1.0)):
      single, _ = training.run_phases(
        self.phases, _carry(w), _feeds(), keys[i] if own_keys else key
      )
      np.testing.assert_allclose(
        carry.model.params['w'][i], single.model.params['w'], rtol=1e-5
      )

  def test_each_member_may_read_a_feed_of_its_own(self):
    lift = lambda fn: jax.jit(
      lambda member, *shared: jax.vmap(lambda m: fn(m, *shared))(member)
    )
    two = lambda a, b: jax.tree.map(lambda *x: jnp.stack(x), a, b)
    mine = _feeds()['clean']
    other = training.make_feed(mine.images[::-1], mine.labels[::-1])
    phases, key = self.phases[:1], jax.random.key(3)
    carry, _ = training.run_phases(
      phases,
      two(_carry(), _carry()),
      {'clean': two(mine, other)},
      key,
      lift=lift,
      own_feeds=True,
    )
    for i, feed in enumerate((mine, other)):
      single, _ = training.run_phases(phases, _carry(), {'clean': feed}, key)
      np.testing.assert_allclose(
        carry.model.params['w'][i], single.model.params['w'], rtol=1e-5
      )

  @parameterized.product(dies_at=(1, 3, 5), stacked=(False, True))
  def test_killed_run_continues_bit_equal(self, dies_at, stacked):
    lift = None
    carry = _carry()
    if stacked:
      lift = lambda fn: jax.jit(
        lambda member, *shared: jax.vmap(lambda m: fn(m, *shared))(member)
      )
      carry = jax.tree.map(lambda x: jnp.stack([x, x + 1]), carry)
    run = functools.partial(
      training.run_phases,
      self.phases,
      carry,
      _feeds(),
      jax.random.key(0),
      lift=lift,
      chunk=2,
      snapshot_seconds=0.0,
    )
    expected, metrics = run()
    memory = Memory(dies_at)
    with pytest.raises(KeyboardInterrupt):
      run(snapshots=memory)
    memory.dies_at = None
    resumed, history = run(snapshots=memory)
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
    jax.tree.map(np.testing.assert_array_equal, history, metrics)

  def test_reports_cover_every_step(self):
    reports = []
    self._run(on_chunk=reports.append)
    steps = [(r.phase, r.step) for r in reports]
    self.assertEqual(
      steps,
      [('first', 3), ('first', 6), ('first', 9), ('second', 2), ('second', 4)],
    )

  def test_phase_without_steps_and_data(self):
    phase = _walk('once', num_epochs=0, batch_size=0, reads='none')
    carry, metrics = training.run_phases(
      (phase,), _carry(), {}, jax.random.key(0)
    )
    self.assertEqual(metrics, {})
    self.assertEqual(carry.model.params['w'].shape, (3,))

  @parameterized.parameters(None, _vmapped)
  def test_runs_of_the_same_phases_share_their_programs(self, lift):
    traces, walk = [], _walk()
    kept = lift and (lambda fn: jax.jit(lift(fn)))

    def counted(state, batch, clock):
      traces.append(clock)
      return walk.step(state, batch, clock)

    def run(seed, augment=None, compiled=None):
      carry = _carry()
      if lift is not None:
        carry = jax.tree.map(lambda x: jnp.stack([x, x + seed]), carry)
      carry, _ = training.run_phases(
        (phase,),
        carry,
        _feeds(10 + seed % 2),
        jax.random.key(seed),
        augment=augment,
        lift=kept,
        compiled=compiled,
      )
      return np.asarray(carry.model.params['w'])

    phase = walk._replace(step=counted, augment=True)
    alone = [run(seed) for seed in (0, 2)]
    darker = run(2, augment=lambda x, keys: 0.5 * x)
    self.assertLen(traces, 3)
    compiled: training.Programs = {}
    np.testing.assert_array_equal(run(0, compiled=compiled), alone[0])
    np.testing.assert_array_equal(run(2, compiled=compiled), alone[1])
    self.assertLen(traces, 4)
    other = run(2, augment=lambda x, keys: 0.5 * x, compiled=compiled)
    np.testing.assert_array_equal(other, darker)
    self.assertFalse(np.array_equal(other, alone[1]))

  def test_float_fields_do_not_retrace(self):
    traces = []

    @jax.jit
    def run(size, carry):
      traces.append(None)
      step = lambda s, batch, clock: (s + size, {'s': jnp.sum(s)})
      phase = _walk('p')._replace(
        init=lambda key, c: c.model.params['w'],
        step=step,
        finish=lambda s: types.Carry(
          model=types.ModelState(params={'w': s}, batch_stats={}), extra={}
        ),
      )
      key = jax.random.key(0)
      return training.run_phases((phase,), carry, _feeds(), key)[0]

    a = run(1.0, _carry())
    b = run(2.0, _carry())
    self.assertLen(traces, 1)
    np.testing.assert_allclose(a.model.params['w'], 9.0)
    np.testing.assert_allclose(b.model.params['w'], 18.0)


class InPlaceTest(parameterized.TestCase):
  def test_a_chunk_uses_up_the_state_of_a_single_model(self):
    phase, feeds = _walk(), _feeds()
    plan = planning.plan(phase, feeds['clean'])
    compiler = programs.Compiler(jax.random.key(0), None, None, False, None, {})
    run = compiler.lifted(0, compiler.chunk(phase, plan, 2))
    state = jnp.zeros(3), jnp.int32(0)
    run(state, feeds['clean'], jnp.int32(0))
    self.assertTrue(all(x.is_deleted() for x in state))

  def test_what_the_caller_gave_survives(self):
    # Its state is what the caller's carry holds, passed on unchanged.
    carry = types.Carry(model=_carry().model, extra=jnp.int32(0))
    training.run_phases((_until(3),), carry, {}, jax.random.key(0), chunk=4)
    self.assertEqual(int(carry.extra), 0)


class MessagesTest(parameterized.TestCase):
  def _fail(self, phase, feeds=None, **kwargs):
    return training.run_phases(
      (phase,),
      _carry(),
      _feeds() if feeds is None else feeds,
      jax.random.key(0),
      **kwargs,
    )

  def test_non_finite_metrics_name_model_phase_and_step(self):
    phase = _walk('tune')
    bad = lambda s, batch, clock: (
      s,
      {'loss': jnp.where(clock.step == 5, jnp.nan, 1.0)},
    )
    with pytest.raises(
      training.NonFiniteError, match="`loss` of m7 is nan at step 5.*'tune'"
    ):
      self._fail(phase._replace(step=bad), names=['m7'], chunk=2)

  def test_stack_goes_on_and_names_the_failed(self):
    metrics = {'loss': np.asarray([[1.0, 2.0], [np.nan, 1.0]])}
    np.testing.assert_array_equal(
      training.finite_members(metrics, stacked=True), [True, False]
    )

  def test_missing_feed(self):
    with pytest.raises(ValueError, match="reads 'clean'.*make_feed"):
      self._fail(_walk(), feeds={})

  def test_two_lengths(self):
    with pytest.raises(ValueError, match='give one of them'):
      self._fail(_walk(num_steps=3))

  def test_batch_size_zero(self):
    with pytest.raises(ValueError, match='batch_size=0'):
      self._fail(_walk(batch_size=0))

  def test_legacy_key(self):
    with pytest.raises(TypeError, match='typed PRNG key'):
      training.run_phases(
        (_walk(),), _carry(), _feeds(), jnp.zeros(2, jnp.uint32)
      )
