"""Winograd's algorithm against XLA's own convolution."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.models import conv_forms, winograd

# name, images, features, padding
CASES = (
  ('fours', (3, 8, 6, 4), 5, ((1, 1), (1, 1))),
  ('a_row_too_many', (2, 5, 6, 4), 5, ((1, 1), (1, 1))),
  ('a_row_missing', (2, 7, 5, 3), 2, ((1, 1), (1, 1))),
  ('no_padding', (2, 9, 6, 2), 3, ((0, 0), (0, 0))),
  ('unlike_padding', (2, 6, 5, 2), 3, ((2, 1), (0, 3))),
  ('cropped', (2, 9, 9, 2), 3, ((-1, 1), (2, -2))),
)
PADDED = ((1, 1), (1, 1))


def make(shape, features, padding=PADDED, dtype=np.float64):
  """(form, images, kernel, gradient of the output)."""
  rng = np.random.default_rng(0)
  form = conv_forms.Form((1, 1), padding)
  x = jnp.asarray(rng.normal(size=shape), dtype)
  kernel = jnp.asarray(rng.normal(size=(3, 3, shape[3], features)), dtype)
  size = conv_forms.output_size(form, x, kernel)
  g = rng.normal(size=(shape[0], *size, features))
  return form, x, kernel, jnp.asarray(g, dtype)


class WinogradTest(parameterized.TestCase):
  @parameterized.named_parameters(*CASES)
  def test_equals_the_plain_forms(self, shape, features, padding):
    with jax.enable_x64(True):
      form, x, kernel, g = make(shape, features, padding)
      own = winograd.convolve(form, x, kernel)
      plain = conv_forms.convolve_plain(form, x, kernel)
      np.testing.assert_allclose(own, plain, rtol=1e-11, atol=1e-11)
      own = winograd.product(form, (3, 3), x, g)
      plain = conv_forms.row_product(form, (3, 3), x, g)
      np.testing.assert_allclose(own, plain, rtol=1e-11, atol=1e-11)

  def test_the_batch_in_pieces(self):
    with jax.enable_x64(True):
      form, x, kernel, _ = make((6, 8, 5, 4), 3)
      whole = winograd.convolve(form, x, kernel)
      self.enter_context(mock.patch.object(conv_forms, '_CACHE', 10000))
      program = jax.make_jaxpr(lambda *x: winograd.convolve(form, *x))
      self.assertIn('scan', str(program(x, kernel)))
      pieces = winograd.convolve(form, x, kernel)
      np.testing.assert_allclose(pieces, whole, rtol=1e-12, atol=1e-12)

  def test_rounding_in_single_precision(self):
    form, x, kernel, g = make((8, 16, 16, 64), 64, dtype=np.float32)
    own = (
      winograd.convolve(form, x, kernel),
      winograd.product(form, (3, 3), x, g),
    )
    with jax.enable_x64(True):
      x, kernel, g = (a.astype(jnp.float64) for a in (x, kernel, g))
      plain = (
        conv_forms.convolve_plain(form, x, kernel),
        conv_forms.row_product(form, (3, 3), x, g),
      )
    for found, expected in zip(own, plain, strict=True):
      self.assertEqual(found.dtype, np.float32)
      expected = np.asarray(expected)
      error = np.abs(np.asarray(found) - expected) / expected.std()
      self.assertLess(np.sqrt(np.mean(error**2)), 2e-6)
      self.assertLess(error.max(), 2e-5)

  @parameterized.parameters(
    ((64, 16, 16, 128), (3, 3, 128, 128), {}, np.float32, True),
    ((64, 7, 7, 256), (3, 3, 256, 256), {}, np.float32, True),
    ((64, 5, 5, 256), (3, 3, 256, 256), {}, np.float32, False),  # 8 rows for 5
    ((64, 16, 16, 16), (3, 3, 16, 16), {}, np.float32, False),
    ((64, 4, 4, 64), (3, 3, 64, 64), {}, np.float32, False),  # little work
    ((64, 16, 16, 128), (5, 5, 128, 128), {}, np.float32, False),
    ((64, 16, 16, 128), (3, 3, 128, 128), {}, jnp.bfloat16, False),
    (
      (64, 16, 16, 128),
      (3, 3, 128, 128),
      {'strides': (2, 2)},
      np.float32,
      False,
    ),
    ((64, 16, 16, 128), (3, 3, 64, 128), {'groups': 2}, np.float32, False),
  )
  def test_where_it_pays(self, x, kernel, changed, dtype, expected):
    low = kernel[0] // 2
    form = conv_forms.Form((1, 1), ((low, low),) * 2)._replace(**changed)
    x = jax.ShapeDtypeStruct(x, dtype)
    kernel = jax.ShapeDtypeStruct(kernel, dtype)
    self.assertEqual(winograd.gains(form, x, kernel), expected)
    g = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[3]), dtype)
    window = kernel.shape[:2]
    self.assertEqual(winograd.product_gains(form, window, x, g), expected)
