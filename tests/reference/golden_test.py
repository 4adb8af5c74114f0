"""What golden tests rely on: one normalization, comparisons that can fail."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from tests.reference import golden

FILES = tuple(sorted(path.stem for path in golden.FOLDER.glob('*.npz')))
NORMALIZED = ('anp', 'i_bau', 'npd', 'preact_w8', 'sau', 'wba')


class GoldenTest(parameterized.TestCase):
  def test_fixtures_that_name_their_normalization(self):
    found = [name for name in FILES if 'mean' in golden.arrays(name)]
    self.assertSequenceEqual(found, NORMALIZED)

  @parameterized.parameters(*NORMALIZED)
  def test_normalization_is_the_networks(self, name):
    info, arrays = golden.network().info, golden.arrays(name)
    self.assertEqual(tuple(arrays['mean'].tolist()), info.mean)
    self.assertEqual(tuple(arrays['std'].tolist()), info.std)

  def test_arrays_under_a_prefix(self):
    whole, part = golden.arrays('wba'), golden.arrays('wba', 'l2/')
    self.assertIn('delta_1', part)
    np.testing.assert_array_equal(part['delta_1'], whole['l2/delta_1'])

  def test_state_has_the_precision_asked_for(self):
    of = lambda state: {x.dtype for x in jax.tree.leaves(state)}
    self.assertEqual(of(golden.state()), {jnp.dtype('float32')})
    with jax.enable_x64(True):
      wide = golden.state(dtype=jnp.float64)
    self.assertEqual(of(wide), {jnp.dtype('float64')})

  def test_errors_are_relative_to_the_largest_number_of_a_tree(self):
    want = {'a': np.asarray([1.0, -8.0]), 'b': np.asarray(0.0)}
    got = {'a': np.asarray([1.0, -8.0]), 'b': np.asarray(0.5)}
    self.assertEqual(golden.error(got, want), 0.0625)
    golden.assert_close(got, want, 0.063)
    with self.assertRaisesRegex(AssertionError, 'not below 0.0625'):
      golden.assert_close(got, want, 0.0625)

  @parameterized.parameters(np.nan, np.inf, 2.0)
  def test_wrong_numbers_and_shapes_fail(self, wrong):
    with self.assertRaises(AssertionError):
      golden.assert_close([1.0, wrong, 1.0], [1.0] * 3, 0.5)
    with self.assertRaises(AssertionError):
      golden.assert_close(np.ones((3, 1)), np.ones(3), 0.5)
