"""Pytree arithmetic, paths and stacks, by hand-computed numbers."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import tree, types

A = {'w': jnp.array([3.0, 0.0]), 'b': jnp.array(4.0)}
B = {'w': jnp.array([0.0, 2.0]), 'b': jnp.array(-1.0)}


def state(classes=2, dtype=jnp.float32):
  return types.ModelState(
    params={'head': {'kernel': jnp.ones((3, classes), dtype)}},
    batch_stats={},
  )


class ArithmeticTest(parameterized.TestCase):
  def test_add_subtract_scale(self):
    np.testing.assert_array_equal(tree.add(A, B)['w'], [3, 2])
    np.testing.assert_array_equal(tree.subtract(A, B)['b'], 5)
    np.testing.assert_array_equal(tree.scale(-2.0, A)['w'], [-6, 0])

  @parameterized.parameters(
    (0.0, 3.0, 4.0), (1.0, 0.0, -1.0), (0.25, 2.25, 2.75)
  )
  def test_interpolate(self, t, w, b):
    got = tree.interpolate(A, B, t)
    self.assertEqual(got['w'][0], w)
    self.assertEqual(got['b'], b)

  def test_interpolate_is_exact_at_the_ends(self):
    a, b = (jax.random.normal(jax.random.key(i), (50,)) for i in (0, 1))
    np.testing.assert_array_equal(tree.interpolate(a, b, 0.0), a)
    np.testing.assert_array_equal(tree.interpolate(a, b, 1.0), b)

  def test_dot_norm_cosine(self):
    self.assertEqual(tree.dot(A, B), -4)
    self.assertEqual(tree.norm(A), 5)
    self.assertAlmostEqual(float(tree.cosine(A, A)), 1, places=6)
    self.assertAlmostEqual(float(tree.cosine(A, tree.scale(-3.0, A))), -1, 6)
    np.testing.assert_allclose(tree.cosine(A, B), -4 / (5 * 5**0.5), 1e-6)

  def test_cosine_with_zero_is_zero(self):
    self.assertEqual(tree.cosine(A, tree.scale(0.0, A)), 0)

  def test_empty_trees_have_no_length(self):
    self.assertEqual(tree.norm({}), 0)
    self.assertEqual(tree.count({}), 0)


class SizeTest(parameterized.TestCase):
  def test_count_and_bytes(self):
    a = {'x': jnp.zeros((2, 3)), 'n': jnp.int8(1), 'key': jax.random.key(0)}
    self.assertEqual(tree.count(a), 6 + 1 + 1)
    self.assertEqual(tree.num_bytes(a), 24 + 1)  # keys are not counted

  def test_bytes_of_abstract_leaves(self):
    abstract = jax.eval_shape(lambda: jnp.zeros((4, 5), jnp.bfloat16))
    self.assertEqual(tree.num_bytes(abstract), 40)


class PathTest(parameterized.TestCase):
  def test_paths_join_fields_keys_and_positions(self):
    given = {'extra': [state()]}
    paths = [
      tree.path_string(path)
      for path, _ in jax.tree_util.tree_leaves_with_path(given)
    ]
    self.assertEqual(paths, ['extra/0/params/head/kernel'])

  def test_select_masks_by_path(self):
    got = tree.select(
      {'head': {'kernel': 1, 'bias': 2}, 'stem': {'kernel': 3}},
      lambda path: path.startswith('head/'),
    )
    want = {'head': {'kernel': True, 'bias': True}, 'stem': {'kernel': False}}
    self.assertEqual(got, want)


class AllFiniteTest(parameterized.TestCase):
  @parameterized.parameters(
    ([1.0, 2.0], True), ([1.0, np.nan], False), ([np.inf, 0.0], False)
  )
  def test_floats(self, values, want):
    given = {'ok': jnp.zeros(3), 'x': jnp.array(values)}
    self.assertEqual(bool(tree.all_finite(given)), want)
    self.assertEqual(bool(jax.jit(tree.all_finite)(given)), want)

  def test_integers_keys_and_nothing_are_finite(self):
    self.assertTrue(bool(tree.all_finite({})))
    self.assertTrue(bool(tree.all_finite([jnp.arange(3), jax.random.key(0)])))


class StackTest(parameterized.TestCase):
  def test_unstack_undoes_stack(self):
    got = tree.unstack(tree.stack([A, B, A]))
    for member, want in zip(got, [A, B, A], strict=True):
      jax.tree.map(np.testing.assert_array_equal, member, want)

  def test_take_accepts_traced_positions(self):
    stacked = tree.stack([A, B])
    got = jax.jit(tree.take)(stacked, 1)
    np.testing.assert_array_equal(got['w'], B['w'])

  def test_take_of_several_is_their_stack(self):
    stacked = {'w': jnp.arange(8.0).reshape(4, 2)}
    got = tree.take(stacked, jnp.array([3, 0]))
    np.testing.assert_array_equal(got['w'], [[6, 7], [0, 1]])

  def test_take_leaves_host_arrays_on_the_host(self):
    got = tree.take({'loss': np.arange(6).reshape(2, 3)}, 1)
    self.assertIsInstance(got['loss'], np.ndarray)
    np.testing.assert_array_equal(got['loss'], [3, 4, 5])

  def test_broadcast_repeats(self):
    got = tree.broadcast({'x': jnp.arange(2), 'key': jax.random.key(0)}, 3)
    self.assertEqual(tree.stack_size(got), 3)
    np.testing.assert_array_equal(got['x'], [[0, 1]] * 3)

  def test_unlike_shapes_name_the_leaf_and_both_shapes(self):
    with self.assertRaises(ValueError) as caught:
      tree.stack([state(2), state(2), state(5)], ['a', 'b', 'c'])
    self.assertEqual(
      str(caught.exception),
      'Cannot stack 3 checkpoints: `params/head/kernel` is (3, 2) in a but '
      '(3, 5) in c; stack only models of one architecture, width and number '
      'of classes.',
    )

  def test_members_without_names_are_numbered(self):
    with self.assertRaisesRegex(ValueError, 'in #0 but .* in #1'):
      tree.stack([state(2), state(5)])

  def test_unlike_dtypes_name_both(self):
    message = '`params/head/kernel` is float32 in A but bfloat16 in B'
    got = tree.describe_mismatch(state(), state(dtype=jnp.bfloat16))
    self.assertEqual(got, message)

  @parameterized.parameters(
    ({'x': 1, 'y': 2}, {'x': 1}, '`y` is in A only'),
    ({'x': 1}, {'x': 1, 'y': 2, 'z': 3}, '`y` is in B only'),
    ([1, 2], (1, 2), 'containers or static fields differ in A and B'),
    ({'x': 1}, {'x': 3}, None),
  )
  def test_describe_mismatch(self, a, b, want):
    self.assertEqual(tree.describe_mismatch(a, b), want)

  def test_the_first_mismatch_is_the_same_in_every_process(self):
    a = {f'leaf{i}': 0 for i in range(20)}
    self.assertEqual(tree.describe_mismatch(a, {}), '`leaf0` is in A only')

  def test_unlike_containers_cannot_be_stacked(self):
    ordered = collections.OrderedDict(x=jnp.ones(1))
    with self.assertRaisesRegex(ValueError, 'containers or static fields'):
      tree.stack([{'x': jnp.ones(1)}, ordered])

  def test_stacks_are_the_same_on_the_host_and_in_a_trace(self):
    trees = [
      {'w': jnp.full((2, 3), i), 'n': np.arange(2) + i, 'k': jax.random.key(i)}
      for i in range(3)
    ]
    plain = [{'w': t['w'], 'n': t['n']} for t in trees]
    stacked = tree.stack(plain)
    traced = jax.jit(lambda *t: tree.stack(t))(*plain)
    for got, want in zip(
      jax.tree.leaves(stacked), jax.tree.leaves(traced), strict=True
    ):
      self.assertIsInstance(got, jax.Array)
      self.assertEqual(got.dtype, want.dtype)
      np.testing.assert_array_equal(got, want)
    with_keys = tree.stack(trees)
    np.testing.assert_array_equal(with_keys['n'], stacked['n'])
    self.assertEqual(with_keys['k'][2], jax.random.key(2))

  def test_nothing_cannot_be_stacked(self):
    with self.assertRaisesRegex(ValueError, 'at least one'):
      tree.stack([])

  @parameterized.parameters(
    ({'a': np.ones(2), 'b': np.ones(3)}, 'Make stacks with tree.stack'),
    ({'a': np.ones(2), 'b': np.float32(1)}, 'Make stacks with tree.stack'),
    ({}, 'without leaves'),
  )
  def test_what_is_no_stack_has_no_size(self, given, message):
    with self.assertRaisesRegex(ValueError, message):
      tree.stack_size(given)
