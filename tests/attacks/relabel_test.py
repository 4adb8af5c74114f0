import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks
from bdjax.attacks import relabel

# Test sets by their sizes per class: 1000, 100 and 50 for each class, and
# GTSRB, of which only class 0 matters here.
TEST_SETS = {
  'cifar10': (np.arange(10000) % 10, 10, 9000),
  'cifar100': (np.arange(10000) % 100, 100, 9900),
  'gtsrb': (np.repeat(np.arange(43), [60] + [300] * 41 + [270]), 43, 12570),
  'tiny_imagenet': (np.arange(10000) % 200, 200, 9950),
}


class RelabelTest(parameterized.TestCase):
  def test_all2one_is_constant(self):
    rule = attacks.all2one(2, num_classes=4)
    self.assertEqual(rule.apply(jnp.array([0, 1, 2, 3])).tolist(), [2, 2, 2, 2])
    self.assertEqual((rule.label_mode, rule.target_label), ('all2one', 2))

  @parameterized.parameters((1, [1, 2, 3, 0]), (-1, [3, 0, 1, 2]))
  def test_all2all_shifts_and_wraps(self, shift, want):
    rule = attacks.all2all(shift, num_classes=4)
    self.assertEqual(rule.apply(np.array([0, 1, 2, 3])).tolist(), want)
    self.assertEqual((rule.label_mode, rule.target_label), ('all2all', None))

  def test_dtype_is_kept_under_jit(self):
    labels = jnp.array([0, 1], jnp.int32)
    for rule in (attacks.all2one(1, 4), attacks.all2all(1, 4)):
      self.assertEqual(jax.jit(rule.apply)(labels).dtype, jnp.int32)

  @parameterized.product(name=tuple(TEST_SETS))
  def test_denominator_excludes_the_target_class(self, name):
    labels, num_classes, size = TEST_SETS[name]
    rule = attacks.all2one(0, num_classes)
    self.assertEqual(int(np.sum(rule.apply(labels) != labels)), size)

  @parameterized.product(name=tuple(TEST_SETS))
  def test_denominator_of_all2all_is_every_image(self, name):
    labels, num_classes, _ = TEST_SETS[name]
    rule = attacks.all2all(1, num_classes)
    self.assertEqual(int(np.sum(rule.apply(labels) != labels)), len(labels))

  @parameterized.parameters(-1, 4)
  def test_target_out_of_range_names_the_range(self, target):
    with self.assertRaisesRegex(ValueError, r'labels are 0 … 3'):
      attacks.all2one(target, num_classes=4)

  @parameterized.parameters(0, 4, -8)
  def test_a_shift_that_does_nothing_is_refused(self, shift):
    with self.assertRaisesRegex(ValueError, r'to itself; use 1 … 3'):
      attacks.all2all(shift, num_classes=4)

  def test_unknown_mode_suggests_the_nearest(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'all2one'"):
      relabel.make_relabel('alltoone', 4, 0, 1)


if __name__ == '__main__':
  absltest.main()
