"""ReFool: both ways by hand, whose draws are whose, published ranges."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage, stats

from bdjax import attacks, types
from bdjax.attacks import reflections
from tests.eval import linear
from tests.reference import golden

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM = 20
GHOST, BLUR = 1.0, 0.0


def images_u8():
  return golden.arrays('triggers_static')['images_u8']


def spec(size=32, channels=3):
  return linear.spec(shape=(size, size, channels), num_classes=10)


def make(size=32, pool=None, **kwargs):
  hp = attacks.RefoolHParams(**{'num_reflections': 4, **kwargs})
  assets = (
    {}
    if pool is None
    else {'reflections': np.resize(pool, (4, *pool.shape[1:]))}
  )
  return attacks.refool(spec(size), hp, assets)


def setup(size=32, pool=None, key=KEY, **kwargs):
  attack = make(size, pool, **kwargs)
  train = np.zeros((NUM, size, size, 3), np.uint8)
  return attack, attack.init(key, train, np.arange(NUM) % 10)


def stamp(images, index=None, key=KEY, **kwargs):
  """The bytes of stamped byte images, `NUM` at a time: compiled once."""
  attack, state = setup(images.shape[1], **kwargs)
  index = np.arange(len(images)) if index is None else index
  stamped = []
  for first in range(0, len(images), NUM):
    rows = (first + np.arange(NUM)) % len(images)
    x = jnp.asarray(images[rows]) / 255
    stamped.append(np.asarray(attack.stamp(state, x, key, index[rows])))
  stamped = np.concatenate(stamped)[: len(images)]
  return np.round(255 * stamped).astype(np.uint8)


def light(levels):
  return (levels / 255.0) ** 2.2


def plain(level, size=32, num=1):
  return np.full((num, size, size, 3), level, np.uint8)


class RefoolTest(parameterized.TestCase):
  @parameterized.product(ghost_rate=(GHOST, BLUR), alpha_t=(0.4, 0.9))
  def test_a_black_reflection_leaves_a_dark_image(self, ghost_rate, alpha_t):
    got = stamp(
      images_u8(), pool=plain(0), ghost_rate=ghost_rate, alpha_t=alpha_t
    )
    want = alpha_t ** (1 / 2.2) * images_u8().astype(float)
    whole = np.abs(want - np.round(want)) < 1e-3
    np.testing.assert_array_equal(got[~whole], np.floor(want[~whole]))

  def test_ghosts_of_weight_zero_are_the_identity(self):
    got = stamp(images_u8(), ghost_rate=GHOST, alpha_t=1.0)
    np.testing.assert_array_equal(got, images_u8())

  def test_ghost_by_hand(self):
    """A picture of rows, shifted by 8 of 32 pixels and its copy."""
    pool = plain(0)
    pool[0] = np.arange(32)[:, None, None] * 8
    got = stamp(
      plain(100),
      pool=pool,
      ghost_rate=GHOST,
      offset=(8, 4),
      ghost_alpha=0.25,
      alpha_t=0.7,
    )
    rows = light(np.arange(32) * 8)
    mixed = 0.25 * rows[8:] + 0.75 * rows[:24]
    at = np.clip((np.arange(32) + 0.5) * 24 / 32 - 0.5, 0, 23)
    reflected = np.interp(at, np.arange(24), mixed)
    want = 255 * (0.7 * light(100) + 0.3 * reflected) ** (1 / 2.2)
    np.testing.assert_array_equal(
      got[0], np.broadcast_to(np.floor(want)[:, None, None], (32, 32, 3))
    )

  @parameterized.parameters(1.5, 5.0)
  def test_blur_by_hand(self, sigma):
    """A dark reflection, so that nothing is too bright."""
    pool = RNG.integers(0, 100, (1, 32, 32, 3), dtype=np.uint8)
    got = stamp(
      plain(100), pool=pool, ghost_rate=BLUR, sigma=sigma, alpha_t=0.4
    )
    radius = int(np.ceil(2 * sigma))
    kernel = stats.norm.pdf(np.arange(-radius, radius + 1), scale=sigma)
    reflected = light(pool[0])
    for axis in (0, 1):
      reflected = ndimage.correlate1d(
        reflected, kernel / kernel.sum(), axis=axis, mode='mirror'
      )
    edges = np.linspace(-1, 1, 33) * (3 + 3.5 / 32)
    profile = np.sqrt(np.diff(stats.norm.cdf(edges)))
    profile /= profile.max()
    window = profile[:, None, None] * profile[None, :, None]
    total = 0.4 * light(100) + 0.8 * window * reflected
    want = np.floor(255 * total ** (1 / 2.2))
    self.assertLessEqual(np.abs(got[0] - want).max(), 1)
    self.assertGreater(np.mean(got[0] == want), 0.999)

  def test_bright_images_dim_a_bright_reflection_to_nothing(self):
    """r + t = 2: the excess of 1 and a bit takes all of the reflection."""
    got = stamp(plain(255), pool=plain(255), ghost_rate=BLUR)
    self.assertEqual(set(np.unique(got)), {int(255 * 0.4 ** (1 / 2.2))})
    ghost = stamp(plain(255), pool=plain(255), ghost_rate=GHOST)
    self.assertEqual(set(np.unique(ghost)), {255})

  def test_blurs_are_darker_at_the_rim_and_ghosts_are_not(self):
    got = stamp(plain(0), pool=plain(128), ghost_rate=BLUR)[0]
    self.assertLess(got[0, 0, 0], got[16, 16, 0] // 2)
    self.assertGreater(got[16, 16, 0], 100)
    ghost = stamp(plain(0), pool=plain(128), ghost_rate=GHOST)[0]
    self.assertLen(np.unique(ghost), 1)

  def test_ghost_rate_is_the_share_of_ghosts(self):
    """Rates 0 and 1 make one way alone; ghosts of a plain picture are plain."""
    index = np.arange(400)
    black = plain(0, 8, 400)

    def share(rate):
      got = stamp(black, index, pool=plain(128, 8), ghost_rate=rate)
      return np.mean(np.ptp(got, axis=(1, 2, 3)) == 0)

    self.assertEqual((share(0.0), share(1.0)), (0, 1))
    self.assertBetween(share(0.49), 0.4, 0.58)

  @parameterized.parameters(
    (32, range(3, 9)), (64, range(3, 9)), (16, range(2, 5)), (8, range(1, 3))
  )
  def test_random_shifts(self, size, want):
    """The first row of the shifted copy alone is row number `shift`."""
    pool = plain(0, size)
    step = 256 // size
    pool[0] = np.arange(size)[:, None, None] * step
    got = stamp(
      plain(0, size, 100),
      pool=pool,
      ghost_rate=GHOST,
      ghost_alpha=1.0,
      alpha_t=0.0,
    )
    shifts = np.round(got[:, 0, 0, 0] / step).astype(int)
    self.assertEqual(set(shifts), set(want))

  def test_random_weights_of_image_and_ghosts(self):
    index = np.arange(300)
    white = plain(255, 8, 300)
    got = stamp(white, index, pool=plain(0, 8), ghost_rate=GHOST, alpha_t=-1.0)
    alpha = (got[:, 0, 0, 0] / 255.0) ** 2.2
    self.assertBetween(alpha.min(), 0.54, 0.6)
    self.assertBetween(alpha.max(), 0.9, 0.951)
    rows = plain(0, 8)
    rows[0, 4:] = 255  # a shift of 4 leaves the copy white, the other black
    got = stamp(
      plain(0, 8, 300),
      index,
      pool=rows,
      ghost_rate=GHOST,
      offset=(4, 4),
      alpha_t=0.0,
    )
    beta = (got[:, 0, 0, 0] / 255.0) ** 2.2
    self.assertTrue(np.all((beta > 0.14) & (beta < 0.86)))
    self.assertBetween(np.mean(beta < 0.5), 0.4, 0.6)
    self.assertBetween(beta.min(), 0.14, 0.18)

  def test_random_blurs(self):
    """A white column spreads over more or fewer pixels."""
    pool = plain(0)
    pool[0, :, 16] = 255
    got = stamp(plain(0, 32, 60), pool=pool, ghost_rate=BLUR)
    widths = np.count_nonzero(got[:, 16, :, 0], axis=-1)
    self.assertBetween(widths.min(), 5, 9)
    self.assertBetween(widths.max(), 17, 21)

  def test_all_pictures_of_the_pool_are_used(self):
    pool = np.concatenate([plain(level, 8) for level in (60, 120, 180)])
    got = stamp(plain(0, 8, 60), pool=pool, ghost_rate=GHOST, alpha_t=0.0)
    self.assertEqual(set(np.unique(got)), {60, 120, 180})

  def test_a_trigger_depends_on_the_index_alone(self):
    same = np.repeat(images_u8()[:1], 3, axis=0)
    got = stamp(same, np.array([5, 7, 5]))
    np.testing.assert_array_equal(got[0], got[2])
    self.assertFalse(np.array_equal(got[0], got[1]))
    np.testing.assert_array_equal(stamp(same[:1], np.array([7])), got[1:2])
    other = stamp(same, np.array([5, 7, 5]), key=jax.random.key(1))
    self.assertFalse(np.array_equal(got, other))

  def test_poison_is_the_same_in_every_epoch_and_batch(self):
    attack, state = setup(8, poison_ratio=1.0)
    images = jnp.asarray(RNG.random((NUM, 8, 8, 3)), jnp.float32)
    index = jnp.arange(NUM)
    batch = {'image': images, 'label': index % 10, 'index': index}
    got = attack.poison(state, batch, KEY)['image']
    again = attack.poison(state, batch, jax.random.key(1))['image']
    np.testing.assert_array_equal(got, again)
    other_order = jnp.asarray(RNG.permutation(NUM))
    shuffled = jax.tree.map(lambda x: x[other_order], batch)
    np.testing.assert_array_equal(
      attack.poison(state, shuffled, KEY)['image'], got[other_order]
    )
    _, other = setup(8, poison_ratio=1.0, key=jax.random.key(1))
    self.assertFalse(
      np.array_equal(attack.poison(other, batch, KEY)['image'], got)
    )

  @parameterized.parameters((False, 'all2one'), (False, 'all2all'), (True, ''))
  def test_poisons_a_share_and_leaves_untouched_rows(self, clean_label, mode):
    mode = mode or 'all2one'
    attack, state = setup(
      8,
      target_label=3,
      poison_ratio=0.1,
      clean_label=clean_label,
      label_mode=mode,
    )
    images = jnp.asarray(RNG.random((NUM, 8, 8, 3)), jnp.float32)
    index = jnp.arange(NUM)
    batch = {'image': images, 'label': index % 10, 'index': index}
    got = attack.poison(state, batch, KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 2)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(
        got[name][~poisoned], batch[name][~poisoned]
      )
    change = np.abs(got['image'] - images).max((1, 2, 3))
    np.testing.assert_array_equal(change > 0, poisoned)
    want = 3 if mode == 'all2one' else (index[poisoned] + 1) % 10
    np.testing.assert_array_equal(got['label'][poisoned], want)
    if clean_label:
      np.testing.assert_array_equal(np.flatnonzero(poisoned), [3, 13])

  @parameterized.parameters(GHOST, BLUR)
  def test_images_stay_in_the_unit_interval_and_on_the_8_bit_grid(self, rate):
    attack, state = setup(16, ghost_rate=rate)
    images = jnp.asarray(RNG.integers(0, 256, (NUM, 16, 16, 3))) / 255.0
    got = np.asarray(attack.stamp(state, images, KEY, np.arange(NUM)))
    self.assertBetween(got.min(), 0, 1)
    self.assertBetween(got.max(), 0, 1)
    np.testing.assert_allclose(255 * got, np.round(255 * got), atol=1e-4)

  def test_images_of_one_channel(self):
    attack = attacks.refool(
      spec(16, 1), attacks.RefoolHParams(num_reflections=2)
    )
    train = np.zeros((NUM, 16, 16, 1), np.uint8)
    state = attack.init(KEY, train, np.arange(NUM) % 10)
    got = attack.stamp(state, jnp.zeros((4, 16, 16, 1)), KEY, np.arange(4))
    self.assertGreater(float(got.max()), 0.2)

  def test_drawn_pool_and_own_pool(self):
    _, drawn = setup(8)
    np.testing.assert_array_equal(
      drawn.trigger['pool'], reflections.draw(4, (8, 8, 3), 0)
    )
    _, other = setup(8, reflection_seed=1)
    self.assertFalse(
      np.array_equal(drawn.trigger['pool'], other.trigger['pool'])
    )
    _, own = setup(8, pool=np.full((2, 20, 30, 3), 77, np.uint8))
    np.testing.assert_array_equal(own.trigger['pool'], plain(77, 8, 4))

  def test_vmap_over_floats_equals_loop(self):
    images = jnp.asarray(images_u8()[:, :8, :8]) / 255
    train = np.zeros((NUM, 8, 8, 3), np.uint8)

    def run(floats):
      hp = attacks.RefoolHParams(num_reflections=4, **floats)
      attack = attacks.refool(spec(8), hp)
      state = attack.init(KEY, train, np.arange(NUM) % 10)
      return attack.stamp(state, images, KEY, np.arange(4))

    floats = {
      'ghost_rate': jnp.array([0.0, 1.0]),
      'alpha_t': jnp.array([0.6, -1.0]),
      'sigma': jnp.array([2.0, -1.0]),
      'ghost_alpha': jnp.array([-1.0, 0.3]),
    }
    one = lambda i: {name: float(value[i]) for name, value in floats.items()}
    looped = np.stack([run(one(i)) for i in range(2)])
    gap = np.abs(np.asarray(jax.vmap(run)(floats)) - looped)
    # Rounding may send a value to the next level; half of one is none.
    self.assertLess(np.mean(gap > 0.5 / 255), 1e-3)

  @parameterized.parameters(
    (dict(ghost_rate=1.5), '`ghost_rate=1.5`'),
    (dict(alpha_t=40.0), '`alpha_t=40.0` exceeds 1; a negative one is drawn'),
    (dict(ghost_alpha=2.0), '`ghost_alpha=2.0` exceeds 1'),
    (dict(sigma=6.0), '`sigma=6.0` exceeds 5'),
    (dict(offset=(3, 0)), r'`offset=\(3, 0\)` is no shift.*two positive'),
    (dict(offset=(32, 3)), 'within images of 32×32'),
    (dict(offset=(3,)), 'give two positive'),
    (dict(num_reflections=0), '`num_reflections=0` must be positive'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      setup(**values)

  def test_a_pool_of_another_size_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'holds 2 pictures.*set it to 2'):
      hp = attacks.RefoolHParams(num_reflections=5)
      attacks.refool(spec(8), hp, {'reflections': plain(3, 8, 2)})

  def test_unknown_assets_are_refused(self):
    with self.assertRaisesRegex(KeyError, "Did you mean 'reflections'"):
      attacks.refool(spec(), None, {'reflection': plain(0)})


if __name__ == '__main__':
  absltest.main()
