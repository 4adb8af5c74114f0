"""The square search (existence_and_reactivation.md E.1, no. 12, 15, 16)."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import perturb
from bdjax.perturb import square, square_windows

KEY = jax.random.key(0)
STAGES = {
  ('linf', 32): [10, 7, 5, 4, 3, 2, 1, 1, 1, 1],
  ('l2', 32): [11, 7, 5, 5, 3, 3, 3, 3, 3, 3],
  ('linf', 64): [20, 14, 10, 7, 5, 4, 3, 2, 1, 1],
  ('l2', 64): [21, 15, 11, 7, 5, 5, 3, 3, 3, 3],
  ('linf', 224): [71, 50, 35, 25, 18, 13, 9, 6, 4, 3],
}
ENDS = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000, 10_000]
B3 = [
  [0.1361, 0.6804, 0.1361],
  [-0.1291, -0.1291, -0.1291],
  [-0.1291, -0.6455, -0.1291],
]


def fraction_of(i, n, p_start):
  """The schedule read off the table, one query at a time."""
  j = 10_000 * i // n
  stage = next(k for k, end in enumerate(ENDS) if j <= end)
  return p_start / 2**stage


def naive_rectangle(height, width):
  """Squares laid upon each other, each adding its own height."""
  center, bump = (height // 2, width // 2), np.zeros((height, width))
  for r in range(max(center) + 1):
    rows = slice(max(center[0] - r, 0), center[0] + r + 1)
    bump[rows, max(center[1] - r, 0) : center[1] + r + 1] += 1 / (r + 1) ** 2
  return bump / np.sqrt(np.sum(bump**2))


def naive_move(delta, corner, emptied, side, bump, signs, eps):
  """The L2 rule by slices, channel by channel."""
  delta = np.array(delta, np.float64)
  places = [np.s_[r : r + side, c : c + side] for r, c in (corner, emptied)]
  union = np.zeros(delta.shape[:2], bool)
  union[places[0]] = union[places[1]] = True
  unused = max(eps**2 - np.sum(delta**2), 0) / delta.shape[2]
  new = []
  for c, sign in enumerate(signs):
    old = delta[places[0]][..., c]
    u = sign * bump + old / (1e-10 + np.linalg.norm(old))
    size = np.sqrt(unused + np.sum(delta[union][:, c] ** 2))
    new.append(u / np.linalg.norm(u) * size)
  delta[places[1]] = 0
  delta[places[0]] = np.stack(new, -1)
  return eps * delta / np.linalg.norm(delta)


def random_signs(seed, *shape):
  return np.random.default_rng(seed).choice([-1.0, 1.0], shape)


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(*STAGES)
  def test_row15_sides_of_the_stages(self, norm, size):
    fractions = square_windows.window_fractions(10_000)
    sides = square_windows.window_sides(fractions, (size, size), norm)
    self.assertEqual(sides.dtype, np.int32)
    begins = [0] + [end + 1 for end in ENDS[:-1]]
    for begin, end, side in zip(begins, ENDS, STAGES[norm, size], strict=True):
      np.testing.assert_array_equal(sides[begin : end + 1], side)

  @parameterized.product(n=(1, 7, 20, 300, 777, 10_000, 12_345), p=(0.1, 0.3))
  def test_row15_fractions_of_any_budget(self, n, p):
    got = square_windows.window_fractions(n, p)
    want = [fraction_of(i, n, p) for i in range(n)]
    np.testing.assert_allclose(got, want, rtol=1e-12)

  @parameterized.product(
    norm=('linf', 'l2'),
    size=((3, 3), (4, 4), (8, 8), (9, 5), (16, 16)),
    p=(0.1, 1.0),
  )
  def test_windows_fit_into_small_images(self, norm, size, p):
    fractions = square_windows.window_fractions(100, p)
    sides = square_windows.window_sides(fractions, size, norm)
    self.assertTrue(np.all(np.diff(sides) <= 0))
    self.assertLessEqual(sides.max(), min(size) - (norm == 'linf'))
    if norm == 'l2':
      self.assertTrue(np.all(sides % 2 == 1))
      self.assertEqual(sides.min(), 3)
    else:
      self.assertEqual(sides.min(), 1)

  @parameterized.parameters(
    (dict(size=(2, 9), norm='l2'), 'at least 3×3, got 2×9'),
    (dict(size=(1, 1), norm='linf'), 'at least 2×2.*gradients'),
    (dict(size=(8, 8), norm='l1'), 'Known: l2, linf'),
  )
  def test_what_has_no_window(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      square_windows.window_sides(np.ones(1), **arguments)

  def test_bad_schedules(self):
    with self.assertRaisesRegex(ValueError, 'use 0.1 for 10 %'):
      square_windows.window_fractions(10, 10.0)
    with self.assertRaisesRegex(ValueError, 'must be positive'):
      square_windows.window_fractions(0)


class BumpsTest(parameterized.TestCase):
  def test_row16_bump_of_side_three(self):
    np.testing.assert_allclose(square_windows.square_bump(3), B3, atol=1e-4)

  @parameterized.parameters(*range(1, 30))
  def test_row16_unit_norm(self, side):
    bump = square_windows.square_bump(side)
    self.assertEqual(bump.shape, (side, side))
    self.assertAlmostEqual(np.linalg.norm(bump), 1, delta=1e-12)
    self.assertTrue(np.all(bump[: side // 2] > 0))
    self.assertTrue(np.all(bump[side // 2 :] < 0))

  @parameterized.parameters((1, 1), (1, 4), (2, 2), (3, 8), (7, 4))
  def test_rectangles_are_laid_upon_each_other(self, height, width):
    got = square_windows.rectangle_bump(height, width)
    np.testing.assert_allclose(got, naive_rectangle(height, width), rtol=1e-12)

  def test_table_is_padded(self):
    sides = np.array([5, 5, 3])
    table, which = square_windows.bump_table(sides)
    self.assertEqual(table.shape, (2, 5, 5))
    for i, side in enumerate(sides):
      bump = table[which[i]]
      np.testing.assert_array_equal(
        bump[:side, :side], square_windows.square_bump(side)
      )
      self.assertEqual(np.count_nonzero(bump), side**2)


class StartTest(parameterized.TestCase):
  def test_stripes_by_hand(self):
    got = square.stripes(jnp.array([[1.0, -1.0], [-1.0, -1.0]]), 3, 0.5)
    want = np.array([[0.5, -0.5], [-0.5, -0.5]])
    np.testing.assert_array_equal(got, np.stack([want] * 3))

  def test_row15_linf_start(self):
    delta = np.asarray(square.draw_start(KEY, (6, 64, 3), 0.05, 'linf'))
    np.testing.assert_array_equal(np.abs(delta), np.float32(0.05))
    np.testing.assert_array_equal(delta, np.stack([delta[0]] * 6))
    self.assertBetween(np.mean(delta > 0), 0.4, 0.6)

  @parameterized.parameters(
    (8, 8), (9, 9), (10, 10), (14, 14), (16, 16), (32, 32), (12, 20)
  )
  def test_row15_l2_start_has_norm_eps(self, *size):
    delta = square.draw_start(KEY, (*size, 3), 0.5, 'l2')
    self.assertEqual((delta.shape, delta.dtype), ((*size, 3), jnp.float32))
    self.assertAlmostEqual(float(jnp.linalg.norm(delta)), 0.5, delta=1e-5)
    rows, cols = square.tile_grid(size)
    side = max(min(size) // 5, 1)
    covered = np.any(np.asarray(delta) != 0, -1)
    self.assertEqual(covered.sum(), rows * cols * side**2)
    margin = covered.any(1).argmax(), covered.any(0).argmax()
    self.assertEqual(margin, ((size[0] % side) // 2, (size[1] % side) // 2))

  @parameterized.parameters((32, 5, 6, 1), (64, 5, 12, 2), (16, 5, 3, 0))
  def test_tiles_are_bumps_in_a_grid(self, size, count, side, margin):
    signs = random_signs(0, count, count, 3)
    turned = random_signs(1, count, count) > 0
    got = square.tiles(
      jnp.asarray(signs, jnp.float32), jnp.asarray(turned), (size, size), 2.0
    )
    want, bump = np.zeros((size, size, 3)), square_windows.square_bump(side)
    for r in range(count):
      for c in range(count):
        tile = bump.T if turned[r, c] else bump
        y, x = margin + r * side, margin + c * side
        want[y : y + side, x : x + side] = tile[..., None] * signs[r, c]
    want *= 2 / np.linalg.norm(want)
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_small_images_start_from_single_pixels(self):
    delta = np.asarray(square.draw_start(KEY, (8, 8, 3), 1.0, 'l2'))
    np.testing.assert_allclose(np.abs(delta), 1 / np.sqrt(192), rtol=1e-5)
    self.assertBetween(np.mean(delta > 0), 0.3, 0.7)

  @parameterized.parameters('linf', 'l2')
  def test_typed_keys(self, norm):
    with self.assertRaisesRegex(TypeError, r'jax.random.key\(seed\)'):
      square.draw_start(np.zeros(2, np.uint32), (8, 8, 3), 0.1, norm)


class WindowTest(parameterized.TestCase):
  def test_by_hand(self):
    got = square.window(jnp.array([1, 2]), 2, (4, 5))
    want = np.zeros((4, 5), bool)
    want[1:3, 2:4] = True
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters((False, 3, 5), (True, 2, 4))
  def test_corners_are_uniform(self, legacy, last_row, last_col):
    draw = lambda key: square.draw_corner(key, (5, 7), 2, legacy)
    corners = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 4000)))
    for i, last in enumerate((last_row, last_col)):
      share = np.bincount(corners[:, i], minlength=last + 1) / 4000
      self.assertLen(share, last + 1)
      np.testing.assert_allclose(share, 1 / (last + 1), atol=0.03)


class LinfTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.delta = jnp.asarray(random_signs(0, 8, 9, 3) * 0.05, jnp.float32)

  @parameterized.parameters(1, 2, 3, 7)
  def test_row15_candidate(self, side):
    eps = np.float32(0.05)
    candidate = jax.jit(square.linf_candidate)
    for key in jax.random.split(KEY, 20):
      new = np.asarray(candidate(key, self.delta, side, 0.05))
      np.testing.assert_array_equal(np.abs(new), eps)
      corner = square.draw_corner(jax.random.split(key)[0], (8, 9), side)
      inside = np.asarray(square.window(corner, side, (8, 9)))
      self.assertEqual(inside.sum(), side**2)
      np.testing.assert_array_equal(new[~inside], self.delta[~inside])
      self.assertTrue(np.any(new[inside] != self.delta[inside]))
      # One sign per channel.
      self.assertLen(np.unique(new[inside], axis=0), 1)

  def shares(self, delta, side):
    """How often each of the eight contents of a whole image is drawn."""
    draw = lambda key: square.linf_candidate(key, delta, side, 0.05)[0, 0] > 0
    new = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 4000)))
    return np.bincount(new @ [4, 2, 1], minlength=8) / 4000

  def test_unchanged_content_is_drawn_never_others_equally(self):
    constant = jnp.broadcast_to(jnp.array([0.05, -0.05, 0.05]), (4, 4, 3))
    share = self.shares(constant, 4)
    self.assertEqual(share[0b101], 0)
    np.testing.assert_allclose(np.delete(share, 0b101), 1 / 7, atol=0.03)

  def test_where_all_contents_are_new_all_are_equal(self):
    mixed = jnp.asarray(random_signs(0, 4, 4, 3) * 0.05, jnp.float32)
    np.testing.assert_allclose(self.shares(mixed, 4), 1 / 8, atol=0.03)

  def test_one_pixel_of_one_channel(self):
    gray = jnp.full((2, 2, 1), -0.1)
    new = np.asarray(square.linf_candidate(KEY, gray, 1, 0.1))
    self.assertEqual(np.sum(new == np.float32(0.1)), 1)

  def test_one_program_for_all_sides(self):
    @jax.jit
    @chex.assert_max_traces(1)
    def draw(side, eps):
      return square.linf_candidate(KEY, self.delta, side, eps)

    chex.clear_trace_counter()
    self.assertFalse(np.array_equal(draw(1, 0.05), draw(7, 0.05)))
    draw(2, 0.04)


class L2Test(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    delta = np.random.default_rng(0).normal(size=(9, 8, 3))
    self.delta = jnp.asarray(delta / np.linalg.norm(delta), jnp.float32)

  @parameterized.product(
    corners=(
      ((0, 0), (6, 5)),  # in opposite corners
      ((2, 3), (3, 2)),  # overlapping
      ((4, 4), (4, 4)),  # the same
    ),
    scale=(1.0, 0.5, 1.5),  # on, inside and outside of the sphere
  )
  def test_given_draws_by_slices(self, corners, scale):
    signs, delta = (1.0, -1.0, -1.0), self.delta * scale
    bump = square_windows.square_bump(3)
    args = (3, bump, signs, 1.0)
    want = naive_move(delta, *corners, *args)
    padded = jnp.asarray(np.pad(bump, (0, 4)), jnp.float32)
    got = square.move_window(
      delta, *map(jnp.array, corners), 3, padded, jnp.array(signs), 1.0
    )
    np.testing.assert_allclose(got, want, atol=1e-5)

  @parameterized.parameters((3, 0.3), (5, 3.0), (7, 1.0))
  def test_row15_candidate(self, side, eps):
    bump = square_windows.square_bump(side)
    candidate = jax.jit(square.l2_candidate)
    delta = self.delta * eps
    for key in jax.random.split(KEY, 10):
      new = np.float64(candidate(key, delta, side, bump, eps))
      self.assertAlmostEqual(np.linalg.norm(new) / eps, 1, delta=1e-5)
      drawn = [
        square.draw_corner(k, (9, 8), side)
        for k in jax.random.split(key, 4)[:2]
      ]
      masks = [np.asarray(square.window(c, side, (9, 8))) for c in drawn]
      outside = ~(masks[0] | masks[1])
      if outside.any():
        ratio = new[outside] / np.float64(delta)[outside]
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
      self.assertFalse(np.allclose(new[masks[0]], delta[masks[0]], rtol=1e-3))
      np.testing.assert_array_equal(new[masks[1] & ~masks[0]], 0)

  def test_empty_windows_move_nothing(self):
    delta = jnp.zeros((9, 9, 3)).at[4, 4].set(1 / np.sqrt(3))
    bump = jnp.asarray(square_windows.square_bump(3), jnp.float32)
    corners = jnp.array([0, 0]), jnp.array([6, 6])
    got = square.move_window(delta, *corners, 3, bump, jnp.ones(3), 1.0)
    np.testing.assert_allclose(got, delta, atol=1e-3)

  def test_zero_radius_is_zero(self):
    bump = square_windows.square_bump(3)
    got = square.l2_candidate(KEY, jnp.zeros((9, 8, 3)), 3, bump, 0.0)
    np.testing.assert_array_equal(got, 0)


class SearchTest(parameterized.TestCase):
  def walk(self, norm, eps, shape, num=40, **options):
    """All perturbations of a search that keeps every proposal."""
    search = perturb.square_search(shape, num, eps=eps, norm=norm, **options)
    propose = jax.jit(search.propose)
    seen = [search.start(KEY)]
    for i in range(num):
      seen.append(propose(jax.random.fold_in(KEY, i), seen[-1], i))
    return search, np.float64(seen)

  @parameterized.product(norm=('linf', 'l2'), shape=((8, 8, 3), (16, 16, 1)))
  def test_row12_never_leaves_the_ball(self, norm, shape):
    _, seen = self.walk(norm, 0.25, shape)
    for delta in seen:
      length = np.linalg.norm(delta.ravel(), {'linf': np.inf, 'l2': 2}[norm])
      self.assertAlmostEqual(length, 0.25, delta=1e-6)
      inside = perturb.project(jnp.float32(delta), 0.25, norm)
      np.testing.assert_allclose(inside, delta, atol=1e-6)

  def test_windows_follow_the_schedule(self):
    search, seen = self.walk('linf', 0.25, (16, 16, 3))
    self.assertLen(search.sides, 40)
    for i, (old, new) in enumerate(zip(seen[:-1], seen[1:], strict=True)):
      rows, cols = np.nonzero(np.any(old != new, axis=-1))
      self.assertLess(np.ptp(rows), search.sides[i])
      self.assertLess(np.ptp(cols), search.sides[i])

  @parameterized.product(norm=('linf', 'l2'), legacy=(False, True))
  def test_last_row_and_column(self, norm, legacy):
    _, seen = self.walk(
      norm, 0.25, (8, 8, 3), num=80, legacy_window_range=legacy
    )
    # Where no window comes, neighbors stay in proportion.
    sign = np.sign(seen)
    for edge in (sign[:, -1], sign[:, :, -1]):
      edge = edge[:, :7]
      same = np.all(edge == edge[:1])
      self.assertEqual(same, legacy)

  def test_one_program_serves_all_queries(self):
    search = perturb.square_search((8, 8, 3), 50, eps=0.1, norm='l2')
    draw = jax.jit(chex.assert_max_traces(search.propose, 1))
    chex.clear_trace_counter()
    start = search.start(KEY)
    jax.block_until_ready([draw(KEY, start, i) for i in (0, 20, 49)])

  def test_traced_radius(self):
    def both(eps):
      search = perturb.square_search((8, 8, 3), 9, eps=eps, norm='l2')
      return search.propose(KEY, search.start(KEY), 0)

    norms = jnp.linalg.norm(jax.vmap(both)(jnp.array([0.5, 2.0])), axis=(1, 2))
    np.testing.assert_allclose(
      np.sqrt(np.sum(np.square(norms), -1)), [0.5, 2.0], rtol=1e-5
    )

  def test_errors_name_the_cure(self):
    make = functools.partial(perturb.square_search, (8, 8, 3), 10)
    with self.assertRaisesRegex(ValueError, '12.75/255'):
      make(eps=12.75, norm='linf')
    with self.assertRaisesRegex(ValueError, 'Known: l2, linf'):
      make(eps=0.1, norm='l1')
