"""Layers as plain functions, against those of jax and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.models import functional

RNG = np.random.default_rng(0)


def integers(*shape):
  """Small ones: sums are exact in whatever order."""
  return jnp.asarray(RNG.integers(-8, 9, shape), jnp.float32)


class FunctionalTest(parameterized.TestCase):
  @parameterized.parameters(
    (3, 1, 1, None, (1, 1)),
    (3, 2, 1, None, (1, 1)),
    (3, 1, 4, None, (4, 4)),
    (1, 1, 1, None, (0, 0)),
    (2, 1, 1, (0, 1), (0, 1)),
    (4, 1, 1, (2, 2), (2, 2)),
  )
  def test_convolution_equals_that_of_jax(
    self, size, stride, dilation, padding, want_padding
  ):
    layer = {'kernel': integers(size, size, 3, 4), 'bias': integers(4)}
    x = integers(2, 6, 8, 3)
    got = functional.conv(layer, x, stride, dilation=dilation, padding=padding)
    want = jax.lax.conv_general_dilated(
      x,
      layer['kernel'],
      (stride, stride),
      (want_padding, want_padding),
      rhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    np.testing.assert_array_equal(got, want + layer['bias'][None, None, None])

  def test_bias_is_optional(self):
    with_bias = functional.conv_shape(3, 2, 4)
    without = functional.conv_shape(3, 2, 4, bias=False)
    self.assertEqual(
      {k: v.shape for k, v in without.items()}, {'kernel': (3, 3, 2, 4)}
    )
    self.assertEqual(with_bias['bias'].shape, (4,))
    layer = {'kernel': integers(1, 1, 2, 3)}
    x = integers(1, 2, 2, 2)
    want = np.einsum('bhwc,cd->bhwd', x, layer['kernel'][0, 0])
    np.testing.assert_array_equal(functional.conv(layer, x), want)

  def test_linear_layer_by_hand(self):
    layer = {'kernel': jnp.array([[1.0, 2.0]]), 'bias': jnp.array([3.0, 4.0])}
    got = functional.dense(layer, jnp.array([[10.0], [20.0]]))
    np.testing.assert_array_equal(got, [[13, 24], [23, 44]])

  @parameterized.parameters(2, ((3, 1),), ((1, 4),))
  def test_pixels_become_blocks(self, times):
    x = integers(2, 3, 4, 2)
    rows, columns = (times, times) if isinstance(times, int) else times
    want = np.repeat(np.repeat(x, rows, 1), columns, 2)
    np.testing.assert_array_equal(functional.repeated(x, times), want)

  @parameterized.parameters(
    (32, 32, 1, 4), (16, 16, 1, 4), (16, 16, 2, 3), (8, 8, 1, 3), (8, 8, 2, 2),
    (12, 32, 1, 2), (224, 224, 2, 4), (2, 2, 1, 1),
  )  # fmt: skip
  def test_depth(self, h, w, smallest, want):
    got = functional.depth(h, w, 4, smallest=smallest)
    self.assertEqual(got, want)

  def test_odd_sides_are_refused(self):
    with self.assertRaisesRegex(ValueError, '7×8 .*multiples of 2, best of 16'):
      functional.depth(7, 8, 4)
