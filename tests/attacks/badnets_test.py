import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks
from bdjax import eval as evaluation
from tests.eval import linear
from tests.reference import golden

SPEC = linear.spec(shape=(32, 32, 3), num_classes=10)
KEY = jax.random.key(0)


def reference():
  return golden.arrays('triggers_static')


def setup(spec=SPEC, assets=None, **kwargs):
  attack = attacks.badnets(spec, attacks.BadNetsHParams(**kwargs), assets)
  num = 20
  state = attack.init(
    KEY, np.zeros((num, *spec.image_shape), np.uint8), np.arange(num) % 10
  )
  return attack, state


def stamp(images_u8, spec=SPEC, assets=None, **kwargs):
  """Stamped float images of byte images."""
  attack, state = setup(spec, assets, **kwargs)
  images = jnp.asarray(images_u8) / 255
  return attack.stamp(state, images, KEY, np.arange(len(images_u8)))


def as_bytes(images):
  return np.round(255 * np.asarray(images)).astype(np.uint8)


class BadNetsTest(parameterized.TestCase):
  @parameterized.parameters(('square', ''), ('grid', '_grid'))
  def test_equals_the_reference(self, patch_image, suffix):
    got = as_bytes(stamp(reference()['images_u8'], patch_image=patch_image))
    np.testing.assert_array_equal(got, reference()[f'badnet_out{suffix}'])

  @parameterized.parameters(('square', ''), ('grid', '_grid'))
  def test_mark_equals_the_reference(self, patch_image, suffix):
    _, state = setup(patch_image=patch_image)
    np.testing.assert_array_equal(
      state.trigger['mark'], reference()[f'badnet_trigger{suffix}']
    )

  def test_at_most_nine_pixels_differ(self):
    images = reference()['images_u8']
    got = as_bytes(stamp(images))
    changed = np.any(got != images, axis=-1).sum(axis=(1, 2))
    self.assertLessEqual(changed.max(), 9)
    self.assertGreater(changed.min(), 0)

  @parameterized.parameters('square', 'grid')
  def test_stamping_is_idempotent(self, patch_image):
    attack, state = setup(patch_image=patch_image)
    index = np.arange(4)
    once = stamp(reference()['images_u8'], patch_image=patch_image)
    twice = attack.stamp(state, once, KEY, index)
    np.testing.assert_array_equal(twice, once)

  def test_untouched_elements_are_bit_identical(self):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)
    attack, state = setup()
    got = attack.stamp(state, images, KEY, np.arange(2))
    outside = np.asarray(state.trigger['mark']) == 0
    np.testing.assert_array_equal(
      np.asarray(got)[:, outside], np.asarray(images)[:, outside]
    )

  def test_images_stay_in_the_unit_interval_and_on_the_8_bit_grid(self):
    got = np.asarray(stamp(reference()['images_u8']))
    self.assertBetween(got.min(), 0, 1)
    self.assertBetween(got.max(), 0, 1)
    np.testing.assert_allclose(255 * got, np.round(255 * got), atol=1e-4)

  def test_soft_rim_at_64_and_crisp(self):
    spec = linear.spec(shape=(64, 64, 3), num_classes=10)
    black = np.zeros((1, 64, 64, 3), np.uint8)
    soft = as_bytes(stamp(black, spec))[0, -7:, 63, 0]
    np.testing.assert_array_equal(soft, [64, 191, 255, 255, 255, 255, 255])
    crisp = as_bytes(stamp(black, spec, crisp=True))[0, -7:, 63, 0]
    np.testing.assert_array_equal(crisp, [0, 255, 255, 255, 255, 255, 255])

  def test_a_mark_of_ones_own(self):
    mark = np.zeros((32, 32), np.uint8)
    mark[0, 0] = 200
    black = np.zeros((1, 32, 32, 3), np.uint8)
    got = as_bytes(stamp(black, assets={'patch_image': mark}))
    self.assertEqual(got[0, 0, 0].tolist(), [200, 200, 200])
    self.assertEqual(got.sum(), 600)

  def test_an_empty_mark_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'marks nothing'):
      setup(assets={'patch_image': np.zeros((32, 32), np.uint8)})

  def test_unknown_patch_and_asset_are_refused(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'grid'"):
      setup(patch_image='grit')
    with self.assertRaisesRegex(KeyError, "Did you mean 'patch_image'"):
      setup(assets={'patch_images': 1})

  @parameterized.parameters(('all2one', 0.9), ('all2all', 1.0))
  def test_asr_denominator(self, label_mode, share):
    attack, state = setup(label_mode=label_mode)
    labels = np.arange(20) % 10
    counts = evaluation.count(
      linear.classifier(SPEC),
      linear.constant(SPEC, 0),
      np.zeros((20, 32, 32, 3), np.uint8),
      labels,
      stamp=lambda x, key, index: attack.stamp(state, x, key, index),
      relabel=attack.relabel,
      key=KEY,
    )
    self.assertEqual(int(counts['triggered_total']), 20 * share)
    # A constant answer is the target for everyone, or for one class.
    want = 18 if label_mode == 'all2one' else 2
    self.assertEqual(int(counts['attack_hits']), want)


if __name__ == '__main__':
  absltest.main()
