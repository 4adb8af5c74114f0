"""Every way of running a stack gives what a plain Python loop gives."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import sweep, tree, types
from bdjax.sweep import memory

MODES = ('vmap', 'map', 'loop', 'shard')
SIZES = (1, 3, 4, 5)
# All of mode x chunk in {1, 2, K} x K, each program once: 'vmap' and 'loop'
# have no chunk, and four devices leave at most two members to each.
RUNS = (
  *((mode, None, m) for mode in ('vmap', 'loop') for m in SIZES),
  *(('map', chunk, m) for m in SIZES for chunk in sorted({1, min(2, m), m})),
  *(('shard', chunk, m) for m in SIZES for chunk in sorted({1, -(-m // 4)})),
)
NUM_CLASSES, WIDTH, BATCH = 3, 4, 6


def init(seed):
  """A two-layer convolutional net in plain arrays."""
  first, second = jax.random.split(jax.random.key(seed))
  return types.ModelState(
    params={
      'conv': jax.random.normal(first, (3, 3, 2, WIDTH)),
      'head': jax.random.normal(second, (3, 3, WIDTH, NUM_CLASSES)),
    },
    batch_stats={'count': jnp.int32(seed)},
  )


def convolve(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def logits_of(state, images):
  x = jax.nn.relu(convolve(images, state.params['conv']))
  return convolve(x, state.params['head']).mean((1, 2))


def measure(state, data):
  """Counts over scanned batches, logits and an input gradient."""
  images, labels = data['images'], data['labels']

  def step(hits, batch):
    image, label = batch
    predicted = logits_of(state, image).argmax(-1)
    return hits + jnp.sum(predicted == label, dtype=jnp.int32), None

  # A carry that starts as a constant: shard_map must bear it.
  hits, _ = jax.lax.scan(step, jnp.int32(0), (images, labels))
  loss = lambda x: jax.nn.logsumexp(logits_of(state, x), axis=-1).sum()
  return {
    'hits': hits,
    'seen': state.batch_stats['count'],
    'logits': logits_of(state, images[0]),
    'gradient': jax.grad(loss)(images[0]),
  }


def make_data():
  rng = np.random.default_rng(0)
  return {
    'images': jnp.asarray(rng.random((2, BATCH, 5, 5, 2), np.float32)),
    'labels': jnp.asarray(rng.integers(0, NUM_CLASSES, (2, BATCH))),
  }


def make_stack(m):
  return tree.stack([init(seed) for seed in range(m)])


def assert_same(got, want):
  """Integers exactly, floats to 1e-5."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert isinstance(x, jax.Array)
    assert x.dtype == y.dtype and x.shape == y.shape
    if jnp.issubdtype(y.dtype, jnp.integer):
      np.testing.assert_array_equal(x, y)
    else:
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


class OverCheckpointsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data = make_data()
    single = jax.jit(measure)
    cls.singles = [single(init(s), cls.data) for s in range(max(SIZES))]

  def expected(self, members):
    return tree.stack([self.singles[i] for i in members])

  def test_there_are_four_devices(self):
    self.assertEqual(jax.device_count(), 4)

  @parameterized.parameters(*RUNS)
  def test_row22_every_mode_equals_a_plain_loop(self, mode, chunk, m):
    exec = types.Exec(mode=mode, chunk=chunk)
    got = sweep.over_checkpoints(measure, make_stack(m), self.data, exec=exec)
    assert_same(got, self.expected(range(m)))

  @parameterized.parameters(*MODES)
  def test_row22_order_of_the_stack_is_the_order_of_results(self, mode):
    order = np.array([3, 0, 4, 1, 2])
    stack = tree.take(make_stack(5), order)
    exec = types.Exec(mode=mode, chunk=2)
    got = sweep.over_checkpoints(measure, stack, self.data, exec=exec)
    assert_same(got, self.expected(order))

  @parameterized.parameters(*MODES)
  def test_row23_a_further_checkpoint_changes_no_other(self, mode):
    exec = types.Exec(mode=mode, chunk=2)
    few, more = (
      sweep.over_checkpoints(measure, make_stack(m), self.data, exec=exec)
      for m in (3, 5)
    )
    assert_same(jax.tree.map(lambda x: x[:3], more), few)

  def test_shard_uses_all_devices_and_keeps_whole_stacks_spread(self):
    exec = types.Exec(mode='shard')
    got = sweep.over_checkpoints(lambda w: 2 * w, jnp.arange(8.0), exec=exec)
    self.assertLen(got.sharding.device_set, 4)
    self.assertEqual(got.addressable_shards[0].data.shape, (2,))

  def test_sharded_results_feed_every_mode(self):
    first = sweep.over_checkpoints(
      lambda w: 2 * w, jnp.arange(4.0), exec=types.Exec(mode='shard')
    )
    for mode in MODES:
      got = sweep.over_checkpoints(
        lambda w: w + 1, first, exec=types.Exec(mode=mode)
      )
      np.testing.assert_array_equal(got, [1, 3, 5, 7])

  @parameterized.parameters(*MODES)
  def test_typed_keys_go_in_and_out(self, mode):
    keys = sweep.member_keys(jax.random.key(0), 3, shared=False)
    got = sweep.over_checkpoints(
      lambda key: (jax.random.fold_in(key, 1), jax.random.bits(key)),
      keys,
      exec=types.Exec(mode=mode, chunk=2),
    )
    want = [(jax.random.fold_in(k, 1), jax.random.bits(k)) for k in keys]
    for i, (key, bits) in enumerate(want):
      self.assertEqual(got[0][i], key)
      self.assertEqual(got[1][i], bits)

  @parameterized.parameters(*MODES)
  def test_numpy_stacks_and_hparams_are_welcome(self, mode):
    @types.hparams
    class Hp:
      lr: float = 0.5
      steps: int = 2

    stack = Hp(lr=np.array([0.5, 1.0, 2.0], np.float32))  # pyrefly: ignore
    got = sweep.over_checkpoints(
      lambda hp, x: hp.lr * x * hp.steps, stack, 3.0, exec=types.Exec(mode=mode)
    )
    np.testing.assert_allclose(got, [3.0, 6.0, 12.0])

  @parameterized.parameters(*MODES)
  def test_no_implicit_transfer_with_data_on_the_device(self, mode):
    lifted = sweep.lift(lambda w, x: w * x, types.Exec(mode=mode, chunk=2))
    stack, x = jnp.arange(3.0), jnp.float32(2)
    with jax.transfer_guard('disallow'):
      got = lifted(stack, x)
    np.testing.assert_array_equal(got, [0, 2, 4])


class CompilationTest(parameterized.TestCase):
  @parameterized.product(mode=MODES, chunk=(None, 1, 2, 5), m=(1, 5))
  def test_one_trace_per_shape(self, mode, chunk, m):
    traces = []

    def fn(w, x):
      traces.append(w.shape)
      return w.sum() * x

    lifted = sweep.lift(fn, types.Exec(mode=mode, chunk=chunk))
    lifted(jnp.ones((m, 3)), jnp.float32(1))
    self.assertEqual(traces, [(3,)])
    lifted(jnp.zeros((m, 3)), jnp.float32(2))
    self.assertLen(traces, 1)

  @parameterized.parameters('map', 'shard')
  def test_measuring_memory_shares_the_trace_of_the_run(self, mode):
    traces = []

    def fn(w):
      traces.append(w.shape)
      return w.sum()

    exec = types.Exec(mode=mode, memory_budget=2**20)
    sweep.lift(fn, exec)(jnp.ones((9, 3)))
    self.assertLen(traces, 1 if mode == 'map' else 2)  # 2: under the mesh

  @parameterized.parameters(*MODES)
  def test_the_second_call_compiles_nothing(self, mode):
    lifted = sweep.lift(lambda w, x: w * x, types.Exec(mode=mode, chunk=2))
    x = jnp.float32(2)
    stacks = [jnp.arange(5.0) + i for i in range(2)]
    lifted(stacks[0], x)
    with jax.log_compiles(), self.assertNoLogs('jax', 'WARNING'):
      lifted(stacks[1], x)

  def test_over_checkpoints_remembers_the_function(self):
    traces = []

    def fn(w):
      traces.append(w.shape)
      return w.sum()

    for mode in ('map', 'vmap', 'map', 'vmap'):
      exec = types.Exec(mode=mode)
      got = sweep.over_checkpoints(fn, jnp.ones((2, 3)), exec=exec)
      np.testing.assert_array_equal(got, [3, 3])
    self.assertLen(traces, 2)

  def test_over_checkpoints_keeps_no_function_alive(self):
    def fn(w):
      return w.sum()

    sweep.over_checkpoints(fn, jnp.ones((2, 3)))
    gone = weakref.ref(fn)
    del fn
    gc.collect()
    self.assertIsNone(gone())

  def test_jitted_bound_and_unhashable_functions_are_welcome(self):
    class Scale:
      __hash__ = None

      def __call__(self, w):
        return 2 * w

      def method(self, w):
        return 2 * w

    for fn in (jax.jit(lambda w: 2 * w), Scale(), Scale().method):
      got = sweep.over_checkpoints(fn, jnp.arange(3.0))
      np.testing.assert_array_equal(got, [0, 2, 4])

  @parameterized.parameters('vmap', 'map', 'shard')
  def test_lifts_inside_a_trace(self, mode):
    exec = types.Exec(mode=mode, chunk=2)

    @jax.jit
    def outer(stack, x):
      return sweep.over_checkpoints(lambda w, x: w * x, stack, x, exec=exec)

    np.testing.assert_array_equal(outer(jnp.arange(3.0), 2.0), [0, 2, 4])

  def test_data_are_not_replicated(self):
    # One constant of the size of the data per member would show as a
    # broadcast of that size in the program.
    lifted = sweep.lift(lambda w, x: (w * x).sum(), types.Exec(mode='map'))
    stack, x = jnp.ones(7), jnp.ones((11, 13))
    text = str(jax.make_jaxpr(lambda s, x: lifted(s, x))(stack, x))
    self.assertIn('11,13', text)
    self.assertNotIn('7,11,13', text)


class DonationTest(parameterized.TestCase):
  @parameterized.product(mode=MODES, m=(4, 5))
  def test_a_donated_stack_gives_the_same_result(self, mode, m):
    exec = types.Exec(mode=mode, chunk=2, donate=True)
    got = sweep.over_checkpoints(
      lambda w: w + 1, jnp.arange(1.0 * m), exec=exec
    )
    np.testing.assert_array_equal(got, 1 + np.arange(m))

  @parameterized.parameters('vmap', 'map', 'loop')
  def test_a_donated_stack_is_used_up(self, mode):
    stack = jnp.arange(5.0)
    exec = types.Exec(mode=mode, donate=True)
    sweep.over_checkpoints(lambda w: w + 1, stack, exec=exec)
    self.assertTrue(stack.is_deleted())

  @parameterized.parameters(*MODES)
  def test_a_stack_that_is_not_donated_survives(self, mode):
    stack = jnp.arange(5.0)
    exec = types.Exec(mode=mode, chunk=2)
    sweep.over_checkpoints(lambda w: w + 1, stack, exec=exec)
    np.testing.assert_array_equal(stack, np.arange(5.0))


class ExecTest(parameterized.TestCase):
  @parameterized.parameters(*MODES)
  def test_precision_is_set_while_tracing(self, mode):
    seen = []

    def fn(w):
      seen.append(jax.config.jax_default_matmul_precision)
      return w @ w

    for precision in ('default', 'highest', 'bfloat16'):
      exec = types.Exec(mode=mode, precision=precision)
      sweep.over_checkpoints(fn, jnp.ones((2, 2, 2)), exec=exec)
      self.assertIsNone(jax.config.jax_default_matmul_precision)
    self.assertEqual(seen, [None, 'highest', 'bfloat16'])

  @parameterized.parameters(False, True)
  def test_remat_rematerializes(self, remat):
    exec = types.Exec(mode='vmap', remat=remat)
    total = lambda s: sweep.lift(jnp.sin, exec)(s).sum()
    stack = jnp.arange(3.0)
    text = str(jax.make_jaxpr(jax.grad(total))(stack))
    self.assertEqual('remat' in text or 'checkpoint' in text, remat)
    np.testing.assert_allclose(jax.grad(total)(stack), np.cos(stack), rtol=1e-6)

  @parameterized.parameters(
    (dict(mode='pmap'), "`mode='pmap'` is not allowed.*Did you mean 'map'"),
    (dict(chunk=0), '`chunk=0` is not a number of models.*None'),
    (dict(chunk=2.5), '`chunk=2.5` is not a number of models'),
    (dict(memory_budget=0), '`memory_budget=0` must be positive.*bytes'),
    (dict(memory_budget=-1), '`memory_budget=-1` must be positive'),
    (dict(precision='fp8'), "`precision='fp8'` is not allowed.*highest"),
  )
  def test_an_impossible_exec_is_refused(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      sweep.lift(lambda w: w, types.Exec(**fields))

  def test_unequal_leading_axes_are_refused(self):
    stack = {'a': jnp.ones(2), 'b': jnp.ones(3)}
    with self.assertRaisesRegex(ValueError, 'Make stacks with tree.stack'):
      sweep.over_checkpoints(lambda s: s, stack)

  def test_an_empty_stack_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'no members'):
      sweep.over_checkpoints(lambda w: w, jnp.ones((0, 2)))

  @parameterized.parameters(jax.jit, jax.vmap)
  def test_a_loop_inside_a_trace_names_the_cure(self, transform):
    exec = types.Exec(mode='loop')
    run = lambda s: sweep.over_checkpoints(lambda w: w + 1, s, exec=exec)
    with self.assertRaisesRegex(ValueError, "mode='map' with chunk=1"):
      transform(run)(jnp.ones((2, 3)))

  def test_a_loop_over_constants_inside_a_trace_names_the_cure(self):
    exec, stack = types.Exec(mode='loop'), np.ones((2, 3))
    run = lambda x: x + sweep.lift(lambda w: w.sum(), exec)(stack).sum()
    with self.assertRaisesRegex(ValueError, "mode='map' with chunk=1"):
      jax.jit(run)(1.0)


class ChunkForTest(parameterized.TestCase):
  @parameterized.parameters(
    ('vmap', None, 9),
    ('vmap', 2, 9),
    ('loop', 4, 1),
    ('map', 4, 4),
    ('map', 50, 9),
    ('map', None, 1),  # the default on CPU
    ('shard', 50, 3),  # ceil(9 / 4 devices)
    ('shard', 2, 2),
    ('shard', None, 1),
  )
  def test_chunk_of_each_mode(self, mode, chunk, want):
    exec = types.Exec(mode=mode, chunk=chunk)
    got = sweep.chunk_for(lambda w: w, jnp.ones((9, 2)), exec=exec)
    self.assertEqual(got, want)

  def test_budget_buys_members_with_their_results_and_temporaries(self):
    # 1 KiB of member and 1 KiB of result, elementwise: nothing temporary.
    stack, fn = jnp.ones((16, 256)), lambda w: 2 * w
    for members in (1, 4, 8, 100):
      exec = types.Exec(memory_budget=2048 * members)
      got = sweep.chunk_for(fn, stack, exec=exec)
      self.assertEqual(got, min(members, 16))

  def test_a_hungrier_function_gets_smaller_chunks(self):
    stack, x = jnp.ones((16, 256)), jnp.ones((64, 256))
    exec = types.Exec(memory_budget=2**16)
    light = sweep.chunk_for(lambda w, x: 2 * w, stack, x, exec=exec)
    heavy = sweep.chunk_for(
      lambda w, x: jnp.sort(jnp.sin(x * w[None]), axis=0), stack, x, exec=exec
    )
    self.assertEqual(light, 16)
    self.assertLess(heavy, 2)

  def test_inside_a_trace_the_budget_is_met_by_the_stack_alone(self):
    chunks = []
    lifted = sweep.lift(lambda w: 2 * w, types.Exec(memory_budget=2 * 8 * 1024))

    @jax.jit
    def outer(stack):
      chunks.append(lifted.chunk_for(stack))
      return lifted(stack)

    outer(jnp.ones((4, 256)))
    self.assertEqual(chunks, [2])

  def test_members_together_that_need_more_than_alone_get_fewer(self):
    # 1 KiB of temporaries alone, but a whole 64 KiB table as soon as batched.
    @jax.custom_batching.custom_vmap
    def greedy(w):
      return jnp.sum(jnp.sort(w))

    @greedy.def_vmap
    def _(size, batched, w):
      del size, batched
      table = jnp.sort(jnp.sin(jnp.tile(w, (1, 64))), axis=-1)
      return jnp.sum(table, axis=-1), True

    stack, budget = jnp.ones((8, 256)), 2**17
    lifted = sweep.lift(greedy, types.Exec(memory_budget=budget))
    chunk = lifted.chunk_for(stack)
    alone = lifted._one.lower(stack[0]).compile()
    each = memory.member_bytes(stack, alone)
    self.assertEqual(memory.fitting_chunk(8, each, budget), 8)
    self.assertBetween(chunk, 1, 4)
    program = lifted._program.lower(stack, (), chunk, None).compile()
    self.assertLessEqual(memory.temporary_bytes(program), budget)

  def test_what_was_measured_is_not_compiled_again(self):
    stack = jnp.ones((6, 256))
    exec = types.Exec(memory_budget=4 * 2048)
    lifted = sweep.lift(lambda w: jnp.sort(jnp.cos(w)), exec)
    self.assertGreater(lifted.chunk_for(stack), 1)
    with jax.log_compiles(), self.assertNoLogs('jax', 'WARNING'):
      lifted(stack)

  def test_the_chunk_is_the_one_that_runs(self):
    exec = types.Exec(memory_budget=2 * 2048)
    lifted = sweep.lift(lambda w: 2 * w, exec)
    stack = jnp.ones((6, 256))
    self.assertEqual(lifted.chunk_for(stack), 2)
    text = str(
      jax.make_jaxpr(lifted._run, static_argnums=(2, 3))(
        stack, (), lifted.chunk_for(stack), None
      )
    )
    self.assertIn('length=3', text)


@pytest.mark.gpu
class GpuTest(parameterized.TestCase):
  def test_default_chunk_comes_from_the_device(self):
    self.assertEqual(sweep.chunk_for(lambda w: 2 * w, jnp.ones((4, 2))), 4)
