"""LF: the sum by hand, accepted patterns, what crafting guarantees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized
from scipy import fft

from bdjax import attacks, perturb, types
from bdjax.attacks.crafting import universal
from bdjax.attacks.triggers import low_pass
from tests import toy
from tests.attacks import crafted
from tests.eval import linear

RAMP = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
SHORT = dict(num_images=8, num_passes=2, num_held_out=4)


def setup(asset=RAMP, **kwargs):
  assets = {} if asset is None else {'pattern': asset}
  attack = attacks.lf(crafted.SPEC, attacks.LfHParams(**kwargs), assets)
  return attack, attack.init(crafted.KEY, crafted.IMAGES, crafted.LABELS)


def craft(key=crafted.KEY, **kwargs):
  hp = attacks.LfHParams(**SHORT | kwargs)
  data = crafted.IMAGES, crafted.LABELS
  crafter = attacks.CRAFTERS['lf']
  return crafter.craft(key, *crafted.network(), *data, hp)['pattern']


@functools.cache
def toy_search():
  """A search on the toy world's clean model, as its factory would make it."""
  images, labels = toy.dataset().train
  images = jnp.asarray(images[:300], jnp.float32) / 255
  return images[100:], universal.search(
    crafted.KEY,
    toy.classifier(),
    toy.clean_model(),
    images[:100],
    images[100:],
    0,
    peak=0.2,
    fooling_rate=0.2,
    max_passes=3,
  )


class LfTest(parameterized.TestCase):
  def test_the_sum_by_hand(self):
    want = np.minimum(crafted.IMAGES.astype(int) + RAMP, 255)
    np.testing.assert_array_equal(crafted.stamp(*setup()), want)

  def test_a_pattern_of_zeros_is_the_identity(self):
    got = crafted.stamp(*setup(np.zeros((8, 8, 3), np.uint8)))
    np.testing.assert_array_equal(got, crafted.IMAGES)

  @parameterized.parameters((8, 8, 3), (1, 8, 8, 3), (2, 8, 8, 3), (8, 8))
  def test_accepted_shapes(self, *shape):
    pattern = crafted.RNG.integers(2, 50, shape, dtype=np.uint8)
    plane = pattern[0] if len(shape) == 4 else pattern
    plane = plane if plane.ndim == 3 else plane[..., None]
    got = crafted.stamp(*setup(pattern), np.zeros_like(crafted.IMAGES[:1]))
    np.testing.assert_array_equal(got[0], np.broadcast_to(plane, (8, 8, 3)))

  def test_patterns_in_unit_range_are_scaled(self):
    unit = (RAMP / 1000).astype(np.float32)
    black = np.zeros_like(crafted.IMAGES[:1])
    got = crafted.stamp(*setup(unit), black)[0]
    np.testing.assert_allclose(got, np.floor(255 * unit), atol=1)
    self.assertGreater(got.max(), 40)
    legacy = crafted.stamp(*setup(unit, legacy_unscaled=True), black)
    np.testing.assert_array_equal(legacy, black)  # less than one level

  @parameterized.parameters('all2one', 'all2all')
  def test_untouched_rows_are_bit_identical(self, mode):
    attack, state = setup(label_mode=mode, target_label=1, poison_ratio=0.25)
    data = crafted.batch()
    got = attack.poison(state, data, crafted.KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 10)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(got[name][~poisoned], data[name][~poisoned])
    want = 1 if mode == 'all2one' else (crafted.LABELS[poisoned] + 1) % 4
    np.testing.assert_array_equal(got['label'][poisoned], want)

  def test_smooth_field_needs_no_asset(self):
    attack, state = setup(None, pattern='smooth_field', pattern_seed=3)
    pattern = np.asarray(state.trigger['pattern'])
    self.assertEqual((pattern.min(), pattern.max()), (0, 51))
    self.assertGreater(np.unique(pattern).size, 10)
    _, other = setup(None, pattern='smooth_field', pattern_seed=4)
    self.assertFalse(np.array_equal(pattern, other.trigger['pattern']))
    crafter = attacks.CRAFTERS['lf']
    self.assertFalse(
      crafter.is_wanted(attacks.LfHParams(pattern='smooth_field'))
    )
    self.assertEqual(attack.info.name, 'lf')

  def test_bad_values(self):
    with self.assertRaisesRegex(
      attacks.MissingAsset, "CRAFTERS\\['lf'\\].*pattern='smooth_field'"
    ):
      setup(None)
    with self.assertRaisesRegex(KeyError, "Did you mean 'pattern'"):
      attacks.lf(crafted.SPEC, None, {'patern': RAMP})
    with self.assertRaisesRegex(ValueError, r'shape \(4, 4\).*craft it anew'):
      setup(np.ones((4, 4)))
    with self.assertRaisesRegex(ValueError, "Did you mean 'generate'"):
      attacks.lf(crafted.SPEC, attacks.LfHParams(pattern='generated'), {})
    with self.assertRaisesRegex(ValueError, '`num_images=40` leaves none'):
      craft(num_images=40)


class CraftTest(parameterized.TestCase):
  @parameterized.parameters(0.2, 0.4)
  def test_crafted_patterns_lie_between_zero_and_the_peak(self, peak):
    pattern = craft(peak=peak)
    self.assertEqual((pattern.dtype, pattern.shape), (np.uint8, (8, 8, 3)))
    self.assertEqual(pattern.min(), 0)
    self.assertEqual(pattern.max(), round(255 * peak))

  def test_crafted_patterns_are_smooth(self):
    _, found = toy_search()
    planes = np.moveaxis(np.asarray(found.pattern), -1, 0)
    energy = fft.dctn(planes, axes=(1, 2)) ** 2
    self.assertLess(1 - energy[:, :2, :2].sum() / energy.sum(), 0.05)

  def test_fooling_rate_is_what_the_model_says(self):
    held_out, found = toy_search()
    predict = lambda x: jnp.argmax(
      toy.classifier().apply(toy.clean_model(), x)[0], -1
    )
    shown = jnp.clip(held_out + found.pattern[None], 0, 1)
    moved = predict(shown) != predict(held_out)
    np.testing.assert_allclose(found.fooling, jnp.mean(moved), atol=1e-6)
    self.assertBetween(int(found.passes), 1, 3)

  def test_enough_ends_the_search(self):
    classifier, model = crafted.network()
    images = jnp.asarray(crafted.IMAGES) / 255
    run = functools.partial(
      universal.search, crafted.KEY, classifier, model, images[:6], images[6:],
      1, peak=0.2, max_passes=7,
    )  # fmt: skip
    self.assertEqual(int(run(fooling_rate=0.0).passes), 1)
    # A linear model is never fooled by its own constant answer.
    flat = jax.tree.map(jnp.zeros_like, model)
    still = universal.search(
      crafted.KEY, classifier, flat, images[:6], images[6:], 1,
      peak=0.2, fooling_rate=0.5, max_passes=7,
    )  # fmt: skip
    self.assertEqual(int(still.passes), 5)  # five alike end it too

  def test_one_push_by_hand(self):
    net = linear.classifier(crafted.SPEC)
    model = net.init(crafted.KEY)
    predict = lambda x: net.apply(model, x)[0]
    image = jnp.asarray(crafted.IMAGES[0]) / 255
    source = int(jnp.argmax(predict(image[None])))
    target = (source + 1) % 4
    zero = jnp.zeros(image.shape)
    got = universal.push(predict, zero, image, target, 0.2, 200)
    r, _, _ = perturb.deepfool(lambda x: predict(x[None])[0], image, target)
    want = low_pass.stretch(low_pass.low_pass(low_pass.low_pass(r)), 0.2)
    np.testing.assert_allclose(got, want, atol=1e-5)
    # Where the pattern changes the class already, it stays.
    others = jnp.asarray(crafted.IMAGES) / 255
    other = others[jnp.argmax(jnp.argmax(predict(others), -1) != source)]
    far = other - image
    kept = universal.push(predict, far, image, target, 0.2, 200)
    np.testing.assert_array_equal(kept, far)

  def test_a_walk_that_does_not_arrive_changes_nothing(self):
    flat = lambda x: jnp.zeros((len(x), 4)) + jnp.eye(4)[:1]
    v = jnp.full((8, 8, 3), 0.1)
    image = jnp.asarray(crafted.IMAGES[0]) / 255
    np.testing.assert_array_equal(universal.push(flat, v, image, 2, 0.2, 9), v)

  def test_depends_on_what_the_crafter_says_and_on_the_key(self):
    first = craft()
    np.testing.assert_array_equal(first, craft(poison_ratio=0.5, seed=3))
    other = craft(jax.random.key(1))
    self.assertFalse(np.array_equal(first, other))
