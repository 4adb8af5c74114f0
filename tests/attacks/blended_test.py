import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks
from tests.eval import linear
from tests.reference import golden

SPEC = linear.spec(shape=(32, 32, 3), num_classes=10)
KEY = jax.random.key(0)


def reference():
  return golden.arrays('triggers_static')


def setup(assets=None, **kwargs):
  if assets is None:
    assets = {'trigger_image': reference()['blended_pattern']}
  attack = attacks.blended(SPEC, attacks.BlendedHParams(**kwargs), assets)
  train = np.zeros((20, 32, 32, 3), np.uint8)
  return attack, attack.init(KEY, train, np.arange(20) % 10)


def stamp(images_u8, assets=None, **kwargs):
  attack, state = setup(assets, **kwargs)
  images = jnp.asarray(images_u8) / 255
  return attack.stamp(state, images, KEY, np.arange(len(images_u8)))


def as_bytes(images):
  return np.round(255 * np.asarray(images)).astype(np.uint8)


class BlendedTest(parameterized.TestCase):
  @parameterized.parameters(0.2, 0.1)
  def test_legacy_equals_the_reference(self, alpha):
    images = reference()['images_u8']
    got = as_bytes(stamp(images, alpha_test=alpha, legacy=True))
    np.testing.assert_array_equal(got, reference()[f'blended_out_a{alpha}'])

  @parameterized.parameters((0.2, 471), (0.1, 244))
  def test_default_keeps_exact_whole_numbers(self, alpha, fallen):
    images = reference()['images_u8']
    got = as_bytes(stamp(images, alpha_test=alpha)).astype(int)
    gap = got - reference()[f'blended_out_a{alpha}']
    self.assertEqual(set(np.unique(gap)), {0, 1})
    self.assertEqual(np.count_nonzero(gap), fallen)

  @parameterized.parameters(0.2, 0.1)
  def test_default_is_the_same_under_jit(self, alpha):
    images = jnp.asarray(reference()['images_u8']) / 255
    attack, state = setup(alpha_test=alpha)
    run = lambda state: attack.stamp(state, images, KEY, np.arange(4))
    np.testing.assert_array_equal(jax.jit(run)(state), run(state))

  @parameterized.product(legacy=(False, True))
  def test_alpha_zero_is_the_identity(self, legacy):
    images = reference()['images_u8']
    got = stamp(images, alpha_test=0.0, legacy=legacy)
    np.testing.assert_array_equal(got, jnp.asarray(images) / 255)

  @parameterized.product(legacy=(False, True))
  def test_alpha_one_gives_the_picture(self, legacy):
    got = as_bytes(
      stamp(reference()['images_u8'], alpha_test=1.0, legacy=legacy)
    )
    want = np.broadcast_to(reference()['blended_pattern'], got.shape)
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters(0, 3, 128, 255)
  def test_constant_images(self, level):
    picture = reference()['blended_pattern'].astype(int)
    images = np.full((1, 32, 32, 3), level, np.uint8)
    got = as_bytes(stamp(images))
    np.testing.assert_array_equal(got[0], (8 * level + 2 * picture) // 10)

  def test_images_stay_in_the_unit_interval_and_on_the_8_bit_grid(self):
    extremes = np.stack(
      [np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)]
    )
    got = np.asarray(stamp(extremes, alpha_test=0.37))
    self.assertBetween(got.min(), 0, 1)
    self.assertBetween(got.max(), 0, 1)
    np.testing.assert_allclose(255 * got, np.round(255 * got), atol=1e-4)

  def test_training_and_test_weights_are_separate(self):
    attack, state = setup(alpha=1.0, alpha_test=0.0, poison_ratio=1.0)
    images = jnp.zeros((2, 32, 32, 3))
    index = jnp.arange(2)
    batch = {'image': images, 'label': index, 'index': index}
    poisoned = as_bytes(attack.poison(state, batch, KEY)['image'])
    np.testing.assert_array_equal(poisoned[0], reference()['blended_pattern'])
    stamped = attack.stamp(state, images, KEY, index)
    np.testing.assert_array_equal(stamped, images)

  def test_untouched_rows_are_bit_identical(self):
    attack, state = setup()
    images = jnp.asarray(np.random.default_rng(0).random((20, 32, 32, 3)))
    index = jnp.arange(20)
    batch = {'image': images, 'label': index % 10, 'index': index}
    got = attack.poison(state, batch, KEY)
    clean = np.asarray(state.kind) == 0
    np.testing.assert_array_equal(got['image'][clean], images[clean])
    self.assertEqual(clean.sum(), 18)

  def test_pictures_are_drawn_where_none_is_given(self):
    _, cartoon = setup(assets={})
    _, again = setup(assets={})
    _, other = setup(assets={}, picture_seed=1)
    _, noise = setup(assets={}, trigger_image='noise')
    picture = lambda state: np.asarray(state.trigger['picture'])
    np.testing.assert_array_equal(picture(cartoon), picture(again))
    for different in (other, noise):
      self.assertFalse(np.array_equal(picture(cartoon), picture(different)))

  def test_pictures_of_any_size_are_scaled(self):
    large = np.full((314, 380, 3), 90, np.uint8)
    _, state = setup(assets={'trigger_image': large})
    np.testing.assert_array_equal(
      state.trigger['picture'], np.full((32, 32, 3), 90)
    )

  def test_vmap_over_alpha_equals_loop(self):
    images = jnp.asarray(reference()['images_u8']) / 255
    train = np.zeros((20, 32, 32, 3), np.uint8)

    def run(alpha):
      hp = attacks.BlendedHParams(alpha_test=alpha)
      attack = attacks.blended(SPEC, hp)
      state = attack.init(KEY, train, np.arange(20) % 10)
      return attack.stamp(state, images, KEY, np.arange(4))

    alphas = jnp.array([0.0, 0.1, 0.3])
    looped = np.stack([run(float(a)) for a in alphas])
    np.testing.assert_array_equal(jax.vmap(run)(alphas), looped)

  @parameterized.parameters('alpha', 'alpha_test')
  def test_weights_outside_of_the_unit_interval_are_refused(self, name):
    with self.assertRaisesRegex(ValueError, f'`{name}=20'):
      setup(**{name: 20.0})

  def test_legacy_refuses_traced_weights(self):
    run = jax.jit(lambda hp: attacks.blended(SPEC, hp).init(KEY, *train))
    train = (np.zeros((20, 32, 32, 3), np.uint8), np.arange(20))
    with self.assertRaisesRegex(TypeError, 'legacy=False'):
      run(attacks.BlendedHParams(legacy=True))

  def test_unknown_picture_and_asset_are_refused(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'noise'"):
      setup(trigger_image='noisy')
    with self.assertRaisesRegex(KeyError, 'trigger_image'):
      setup(assets={'picture': np.zeros((4, 4), np.uint8)})


if __name__ == '__main__':
  absltest.main()
