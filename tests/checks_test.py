"""Every message names what was given, what is allowed and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks


class NumbersTest(parameterized.TestCase):
  @parameterized.parameters(
    (checks.positive, 1e-9),
    (checks.positive, np.array([1, 2])),
    (checks.non_negative, 0),
    (checks.fraction, 0.05),
    (checks.fraction, 1),
    (checks.unit_interval, 0),
    (checks.unit_interval, np.array([0.0, 1.0])),
    (checks.positive, None),
    (checks.fraction, None),
  )
  def test_allowed(self, check, value):
    check(value=value)

  @parameterized.parameters(
    (checks.positive, 0, '`lr=0` must be positive.'),
    (checks.positive, np.nan, '`lr=nan` must be positive.'),
    (checks.non_negative, -0.5, '`lr=-0.5` must not be negative.'),
    (checks.unit_interval, 1.5, '`lr=1.5` is not in [0, 1].'),
    (checks.unit_interval, np.nan, '`lr=nan` is not in [0, 1].'),
  )
  def test_refused(self, check, value, message):
    with self.assertRaises(ValueError) as caught:
      check(lr=value)
    self.assertEqual(str(caught.exception), message)

  @parameterized.parameters(
    (5, '; ratios are fractions, use 0.05 for 5 %.'),
    (12.5, '; ratios are fractions, use 0.125 for 12.5 %.'),
    (0, '; ratios are fractions.'),
    (-1, '; ratios are fractions.'),
    (500, '; ratios are fractions.'),
  )
  def test_percentages_are_told_their_fraction(self, value, cure):
    with self.assertRaises(ValueError) as caught:
      checks.fraction(clean_ratio=value)
    self.assertEqual(
      str(caught.exception), f'`clean_ratio={value}` is not in (0, 1]{cure}'
    )

  def test_the_first_bad_argument_of_several_is_named(self):
    with self.assertRaisesRegex(ValueError, '`b=-1`'):
      checks.positive(a=1, b=-1, c=-2)

  def test_traced_values_are_skipped(self):
    def fn(x):
      self.assertFalse(checks.is_concrete(x))
      checks.positive(x=x)
      checks.fraction(x=x)
      checks.pixel_budget('linf', x=x)
      checks.label(3, x=x)
      return x

    jax.jit(fn)(-7)
    self.assertTrue(checks.is_concrete(jnp.ones(())))


class PixelBudgetTest(parameterized.TestCase):
  @parameterized.parameters(('linf', 8 / 255), ('linf', 1), ('l2', 3.0))
  def test_allowed(self, norm, eps):
    checks.pixel_budget(norm, eps=eps)

  @parameterized.parameters(
    (8, 'images live in .0, 1., write 8/255 for 8 gray levels'),
    (np.array([0.5, 4.0]), 'write 4/255'),
    (-0.1, 'must not be negative'),
  )
  def test_gray_levels_are_told_their_fraction(self, eps, message):
    with self.assertRaisesRegex(ValueError, message):
      checks.pixel_budget('linf', eps=eps)


class NamesTest(parameterized.TestCase):
  def test_one_of(self):
    checks.one_of(('linf', 'l2'), norm='l2')
    with self.assertRaises(ValueError) as caught:
      checks.one_of(('linf', 'l2'), norm='l_inf')
    self.assertEqual(
      str(caught.exception),
      "`norm='l_inf'` is not allowed. Did you mean 'linf'? Known: l2, linf.",
    )

  @parameterized.parameters(
    ('ftsam', ['sau', 'ft_sam'], "Did you mean 'ft_sam'? Known: ft_sam, sau."),
    ('zzz', ['sau', 'ft'], 'Known: ft, sau.'),
    ('x', [], 'Known: none.'),
  )
  def test_suggest(self, given, known, want):
    self.assertEqual(checks.suggest(given, known), want)


class LabelTest(parameterized.TestCase):
  @parameterized.parameters(0, 9, None, np.int32(3))
  def test_allowed(self, label):
    checks.label(10, target=label)

  def test_device_arrays_are_labels_too(self):
    checks.label(10, target=jnp.int32(3))

  def test_arrays_are_checked_as_a_whole(self):
    checks.label(10, labels=np.arange(10))
    with self.assertRaisesRegex(ValueError, 'labels are 0 … 9'):
      checks.label(10, labels=np.arange(11))

  @parameterized.parameters(10, -1)
  def test_out_of_range(self, label):
    with self.assertRaises(ValueError) as caught:
      checks.label(10, target_label=label)
    self.assertEqual(
      str(caught.exception),
      f'`target_label={label}` is out of range: labels are 0 … 9 for 10 '
      'classes.',
    )

  def test_fractional_labels_are_refused(self):
    with self.assertRaisesRegex(TypeError, 'labels are integers'):
      checks.label(10, target_label=2.5)


class KeyTest(parameterized.TestCase):
  def test_typed_keys_pass_also_traced_and_in_arrays(self):
    checks.typed_key(key=jax.random.key(0))
    checks.typed_key(key=jax.random.split(jax.random.key(0), 3))

    def fn(key):
      checks.typed_key(key=key)
      return key

    jax.jit(fn)(jax.random.key(0))

  @parameterized.parameters(
    (np.zeros(2, np.uint32), 'got ndarray of dtype uint32'),
    (0, 'got int of dtype None'),
    (None, 'got NoneType of dtype None'),
  )
  def test_others_are_told_how_to_make_one(self, key, message):
    with self.assertRaisesRegex(
      TypeError, f'`key` must be a typed.*{message}.*jax.random.key.seed.'
    ):
      checks.typed_key(key=key)


class ImagesTest(parameterized.TestCase):
  @parameterized.parameters((4, 4, 3), (2, 4, 4, 3), (5, 2, 4, 4, 1))
  def test_unit_images_of_any_number_of_leading_axes(self, *shape):
    checks.unit_images(images=np.ones(shape, np.float32))
    checks.unit_images(images=jnp.ones(shape, jnp.bfloat16))

  def test_no_images_pass(self):
    checks.unit_images(images=np.ones((0, 4, 4, 3), np.float32))

  @parameterized.parameters(
    (255.0, 'got min 255 and max 255; divide uint8 by 255'),
    (-0.5, 'got min -0.5'),
    (np.nan, 'got min nan'),
  )
  def test_values_outside_the_unit_interval(self, value, message):
    with self.assertRaisesRegex(ValueError, message):
      checks.unit_images(images=np.full((2, 4, 4, 3), value, np.float32))

  def test_traced_values_are_skipped_but_not_their_shapes(self):
    def fn(images):
      checks.unit_images(images=images)
      return images

    jax.jit(fn)(np.full((4, 4, 3), 255.0, np.float32))
    with self.assertRaisesRegex(ValueError, r'has shape \(4, 4\)'):
      jax.jit(fn)(np.ones((4, 4), np.float32))

  def test_bytes_are_told_to_convert(self):
    with self.assertRaisesRegex(TypeError, 'convert uint8 with data.to_float'):
      checks.unit_images(images=np.ones((4, 4, 3), np.uint8))

  def test_byte_images(self):
    checks.byte_images(images=np.ones((2, 4, 4, 3), np.uint8))
    with self.assertRaisesRegex(
      TypeError, 'dtype float32; data sets hold uint8'
    ):
      checks.byte_images(images=np.ones((2, 4, 4, 3), np.float32))
    with self.assertRaisesRegex(ValueError, r'\(4, 4, 3\); expected \[N, h, w'):
      checks.byte_images(images=np.ones((4, 4, 3), np.uint8))
