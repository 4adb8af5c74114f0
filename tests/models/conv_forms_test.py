"""Forms of convolutions, each against XLA's own."""

import jax
import numpy as np
from absl.testing import parameterized

from bdjax.models import conv_forms

# name, images, kernel, padding, dilation, block
CASES = (
  ('few_channels', (2, 6, 8, 3), (3, 3, 3, 4), ((1, 1), (1, 1)), 1, (1, 8)),
  ('a_rest', (2, 5, 7, 2), (3, 3, 2, 1), ((1, 1), (1, 1)), 1, (2, 4)),
  ('even_kernel', (2, 5, 6, 2), (4, 2, 2, 3), ((0, 2), (3, 0)), 1, (1, 2)),
  ('cropped', (2, 6, 7, 2), (3, 3, 2, 3), ((-1, 0), (2, -2)), 1, (2, 3)),
  ('dilated', (2, 4, 4, 2), (3, 3, 2, 3), ((1, 2), (1, 2)), 2, (2, 2)),
  ('dilated_wide', (2, 4, 4, 2), (3, 3, 2, 1), ((1, 2), (1, 2)), 2, (2, 4)),
  ('dilated_rest', (2, 3, 5, 2), (3, 5, 2, 3), ((1, 1), (4, 1)), 2, (2, 2)),
  ('dilated_by_3', (2, 3, 3, 2), (2, 2, 2, 3), ((1, 3), (-1, 0)), 3, (3, 3)),
  ('small_kernel', (2, 3, 3, 2), (1, 1, 2, 3), ((0, 1), (0, 1)), 2, (2, 2)),
)

# name, images, kernel, the form
DENSE = (
  ('smaller_than_the_kernel', (3, 2, 2, 4), (3, 3, 4, 5), {}),
  ('single_pixel', (3, 1, 1, 4), (3, 3, 4, 5), {}),
  ('stride', (3, 4, 5, 2), (3, 3, 2, 3), {'strides': (2, 2)}),
  ('unlike_axes', (2, 3, 4, 2), (2, 3, 2, 3), {'strides': (1, 2)}),
  ('dilated', (3, 2, 2, 4), (3, 3, 4, 5), {'x_dilation': (2, 2)}),
  ('dilated_kernel', (2, 5, 5, 2), (3, 3, 2, 3), {'kernel_dilation': (2, 2)}),
  ('cropped', (2, 4, 4, 2), (3, 3, 2, 3), {'padding': ((-1, 2), (0, 3))}),
)


class PackedTest(parameterized.TestCase):
  @parameterized.named_parameters(*CASES)
  def test_equals_the_plain_form(self, x, kernel, padding, dilation, block):
    form = conv_forms.Form((1, 1), padding, (dilation, dilation))
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      arrays = [jax.numpy.asarray(rng.normal(size=s)) for s in (x, kernel)]
      own = conv_forms.convolve_packed(form, block, *arrays)
      plain = conv_forms.convolve_plain(form, *arrays)
      self.assertEqual(own.shape, plain.shape)
      np.testing.assert_allclose(own, plain, rtol=1e-12, atol=1e-12)

  @parameterized.parameters(
    ((2, 32, 32, 3), (3, 3, 3, 16), 1, (1, 2)),  # a stem
    ((2, 32, 32, 16), (3, 3, 16, 3), 1, (1, 8)),  # back to the pixels
    ((2, 9, 9, 3), (3, 3, 3, 16), 1, (1, 1)),  # nothing divides the width
    ((2, 8, 8, 64), (3, 3, 64, 3), 1, (1, 1)),  # channels enough
    ((2, 8, 8, 64), (3, 3, 64, 32), 2, (2, 2)),  # the gradient of a stride
    ((2, 8, 8, 128), (3, 3, 128, 64), 2, (1, 1)),
  )
  def test_joins_outputs_where_it_pays(self, x, kernel, dilation, block):
    form = conv_forms.Form((1, 1), ((1, dilation),) * 2, (dilation,) * 2)
    found = conv_forms.best_block(form, np.zeros(x), np.zeros(kernel))
    self.assertEqual(found, block)


class PhasesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('stride2', (2, 4, 5, 2), (3, 3, 2, 3), ((1, 2), (1, 2)), (2, 2)),
    ('odd', (2, 4, 3, 2), (3, 3, 2, 3), ((1, 1), (1, 1)), (2, 2)),
    ('one_axis', (2, 4, 3, 2), (3, 4, 2, 3), ((1, 1), (2, 1)), (1, 3)),
    ('wide', (2, 3, 3, 2), (5, 4, 2, 3), ((0, 4), (3, 1)), (2, 4)),
    ('cropped', (2, 4, 4, 2), (3, 3, 2, 3), ((-2, 1), (1, -1)), (2, 2)),
  )
  def test_equals_the_plain_form(self, x, kernel, padding, dilation):
    form = conv_forms.Form((1, 1), padding, dilation)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      arrays = [jax.numpy.asarray(rng.normal(size=s)) for s in (x, kernel)]
      own = conv_forms.convolve_phases(form, *arrays)
      plain = conv_forms.convolve_plain(form, *arrays)
      self.assertEqual(own.shape, plain.shape)
      np.testing.assert_allclose(own, plain, rtol=1e-12, atol=1e-12)

  @parameterized.parameters(
    ((3, 3, 64, 32), {}, True),
    ((3, 3, 64, 3), {}, False),  # too few outputs
    ((1, 1, 64, 32), {}, False),  # some phases would meet no entry
    ((3, 3, 32, 64), {'groups': 2}, False),
    ((3, 3, 64, 32), {'x_dilation': (1, 1)}, False),
  )
  def test_where_it_pays(self, kernel, changed, expected):
    form = conv_forms.Form((1, 1), ((1, 2), (1, 2)), (2, 2))
    form = form._replace(**changed)
    self.assertEqual(
      conv_forms.gains_by_phases(form, np.zeros(kernel)), expected
    )


class DenseTest(parameterized.TestCase):
  @parameterized.named_parameters(*DENSE)
  def test_equals_the_plain_form(self, x, kernel, form):
    form = conv_forms.Form(
      **({'strides': (1, 1), 'padding': ((1, 1), (1, 2))} | form)
    )
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
      x, kernel = (jax.numpy.asarray(rng.normal(size=s)) for s in (x, kernel))
      plain = conv_forms.convolve_plain(form, x, kernel)
      own = conv_forms.convolve_dense(form, x, kernel)
      self.assertEqual(own.shape, plain.shape)
      np.testing.assert_allclose(own, plain, rtol=1e-12, atol=1e-12)
