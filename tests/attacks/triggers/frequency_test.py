"""Coefficients and colors, by SciPy's transform and OpenCV's levels."""

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy import fft

from bdjax.attacks.triggers import color, frequency
from tests.reference import golden

RNG = np.random.default_rng(0)


def blocks_of(pattern, window):
  """The blocks [n, window, window] of a picture."""
  height, width = pattern.shape
  cut = pattern.reshape(height // window, window, width // window, window)
  return cut.swapaxes(1, 2).reshape(-1, window, window)


class FrequencyTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 8, 15, 32)
  def test_basis_is_the_orthonormal_transform(self, size):
    basis = frequency.dct_basis(size)
    x = RNG.normal(size=size)
    np.testing.assert_allclose(basis @ x, fft.dct(x, norm='ortho'), atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, np.eye(size), atol=1e-12)

  @parameterized.parameters(
    ((8, 8), 8, ((3, 3), (7, 7))),
    ((12, 8), 4, ((0, 2),)),
    ((64, 64), 32, ((15, 15), (31, 31))),
  )
  def test_pattern_is_one_at_its_coefficients_of_each_block(
    self, shape, window, positions
  ):
    pattern = frequency.block_pattern(shape, window, positions)
    self.assertEqual(pattern.shape, shape)
    want = np.zeros((window, window))
    want[tuple(zip(*positions, strict=True))] = 1
    blocks = blocks_of(pattern, window)
    self.assertLen(blocks, shape[0] * shape[1] // window**2)
    for block in blocks:
      got = fft.dctn(block, norm='ortho')
      np.testing.assert_allclose(got, want, atol=1e-12)

  def test_pattern_by_hand(self):
    """Frequency 1 of two samples is (1, −1)/√2."""
    got = frequency.block_pattern((2, 4), 2, ((0, 1),))
    want = [[0.5, -0.5, 0.5, -0.5]] * 2
    np.testing.assert_allclose(got, want, atol=1e-12)

  @parameterized.parameters(
    (32, (15, 15), (31, 31)),
    (16, (7, 7), (15, 15)),
    (8, (3, 3), (7, 7)),
    (1, (0, 0), (0, 0)),
  )
  def test_positions_scale_with_the_window(self, size, low, high):
    self.assertEqual(frequency.scale_position((15, 15), 32, size), low)
    self.assertEqual(frequency.scale_position((31, 31), 32, size), high)

  @parameterized.parameters(
    (dict(window=5), '`window=5` does not divide images of 8×8'),
    (dict(window=0), '`window=0` must be positive'),
    (dict(positions=((8, 1),)), r'position \(8, 1\).*below `window=8`'),
    (dict(positions=((-1, 1),)), r'position \(-1, 1\).*below `window=8`'),
    (dict(positions=((1, 2, 3),)), 'no pair of frequencies'),
    (dict(positions=()), 'at least one coefficient'),
    (dict(positions=((1, 1), (1, 1))), 'none twice'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      frequency.block_pattern(
        (8, 8), **{'window': 8, 'positions': ((1, 1),)} | values
      )


class ColorTest(parameterized.TestCase):
  def test_levels_equal_those_of_the_reference(self):
    want = golden.arrays('triggers_frequency', 'cvt_')
    for to, back in (
      (color.to_ycrcb, color.from_ycrcb),
      (jax.jit(color.to_ycrcb), jax.jit(color.from_ycrcb)),
    ):
      np.testing.assert_array_equal(to(want['rgb']), want['ycrcb'])
      np.testing.assert_array_equal(back(want['ycrcb']), want['back_rgb'])

  def test_close_to_the_formula(self):
    rgb = RNG.integers(0, 256, (1000, 3))
    red, green, blue = rgb.T
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    # The chroma is made of the luma's whole level.
    want = [y, 0.713 * (red - y) + 128, 0.564 * (blue - y) + 128]
    gap = np.abs(np.clip(np.stack(want, -1), 0, 255) - color.to_ycrcb(rgb))
    self.assertLess(gap[:, 0].max(), 0.51)
    self.assertLess(gap.max(), 0.9)

  def test_greys_have_no_chroma_and_come_back(self):
    grey = np.repeat(np.arange(256)[:, None], 3, -1)
    got = np.asarray(color.to_ycrcb(grey))
    np.testing.assert_array_equal(got[:, 0], grey[:, 0])
    np.testing.assert_array_equal(got[:, 1:], 128)
    np.testing.assert_array_equal(color.from_ycrcb(got), grey)

  def test_round_trip_is_one_level_off_at_most(self):
    steps = np.array([*range(0, 256, 5), 1, 2, 127, 128, 253, 254])
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing='ij'), -1)
    got = np.asarray(color.from_ycrcb(color.to_ycrcb(rgb)))
    self.assertEqual(np.abs(got - rgb).max(), 1)


if __name__ == '__main__':
  absltest.main()
