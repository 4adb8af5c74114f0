"""Keys of stack members."""

import jax
import numpy as np
from absl.testing import absltest

from bdjax import sweep


class MemberKeysTest(absltest.TestCase):
  def test_shared_by_default(self):
    key = jax.random.key(3)
    got = sweep.member_keys(key, 4)
    self.assertEqual(got.shape, (4,))
    self.assertTrue(bool((got == key).all()))

  def test_own_keys_differ_and_do_not_depend_on_m(self):
    key = jax.random.key(3)
    few, more = (sweep.member_keys(key, m, shared=False) for m in (3, 5))
    self.assertTrue(bool((few == more[:3]).all()))
    bits = np.asarray(jax.random.key_data(more))
    self.assertLen(np.unique(bits, axis=0), 5)

  def test_legacy_keys_and_empty_stacks_are_refused(self):
    with self.assertRaisesRegex(TypeError, r'jax\.random\.key\(seed\)'):
      sweep.member_keys(np.zeros(2, np.uint32), 3)
    with self.assertRaisesRegex(ValueError, '`m=0` must be positive'):
      sweep.member_keys(jax.random.key(0), 0)
