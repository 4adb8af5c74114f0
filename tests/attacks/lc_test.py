"""LC: replaced bases, corners alone at test time, labels, the crafting."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import attacks, types
from bdjax.attacks.triggers import corners
from tests.attacks import crafted
from tests.eval import linear

OTHER = crafted.RNG.integers(0, 256, crafted.IMAGES.shape, dtype=np.uint8)
SIGNS = np.broadcast_to(np.asarray(corners.corner_signs((8, 8, 3))), (8, 8, 3))


def setup(bank=OTHER, **kwargs):
  assets = {} if bank is None else {'adv_images': bank}
  hp = attacks.LcHParams(**{'poison_ratio': 0.2} | kwargs)
  attack = attacks.lc(crafted.SPEC, hp, assets)
  return attack, attack.init(crafted.KEY, crafted.IMAGES, crafted.LABELS)


def marked(images):
  return np.where(SIGNS > 0, 255, np.where(SIGNS < 0, 0, images))


def poisoned_bytes(attack, state):
  """(bytes, labels, which rows are poisoned) of the whole training set."""
  got = attack.poison(state, crafted.batch(), crafted.KEY)
  levels = np.round(255 * np.asarray(got['image'])).astype(np.uint8)
  poisoned = np.asarray(state.kind) == types.POISONED
  return levels, np.asarray(got['label']), poisoned


def craft(**kwargs):
  hp = attacks.LcHParams(**{'steps': 6} | kwargs)
  crafter = attacks.CRAFTERS['lc']
  data = crafted.IMAGES, crafted.LABELS
  return crafter.craft(crafted.KEY, *crafted.network(), *data, hp)['adv_images']


def of_class(label, images=crafted.IMAGES):
  return images[crafted.LABELS == label]


class LcTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_poison_is_the_marked_base(self, all_classes):
    bank = OTHER if all_classes else of_class(2, OTHER)
    attack, state = setup(bank, target_label=2)
    levels, _, poisoned = poisoned_bytes(attack, state)
    self.assertEqual(poisoned.sum(), 8)
    self.assertEqual(set(crafted.LABELS[poisoned]), {2})
    np.testing.assert_array_equal(levels[poisoned], marked(OTHER[poisoned]))

  def test_bank_holds_the_target_class_alone(self):
    _, state = setup(target_label=1)
    np.testing.assert_array_equal(state.trigger['bank'], of_class(1, OTHER))
    slot = np.asarray(state.trigger['slot'])
    rows = crafted.LABELS == 1
    np.testing.assert_array_equal(slot[rows], np.arange(10))
    np.testing.assert_array_equal(slot[~rows], -1)

  def test_labels_stay(self):
    _, labels, _ = poisoned_bytes(*setup())
    np.testing.assert_array_equal(labels, crafted.LABELS)
    self.assertTrue(setup()[0].info.clean_label)

  def test_test_images_change_in_the_corners_alone(self):
    got = crafted.stamp(*setup())
    np.testing.assert_array_equal(got, marked(crafted.IMAGES))
    one = crafted.stamp(*setup(corners='bottom_right'))
    changed = np.any(one != crafted.IMAGES, (0, 3))
    self.assertEqual(np.argwhere(changed).min(), 5)
    self.assertEqual(changed.sum(), 9)

  def test_zero_amplitude_leaves_test_images_as_they_are(self):
    got = crafted.stamp(*setup(reduced_amplitude=0.0))
    np.testing.assert_array_equal(got, crafted.IMAGES)

  def test_reduced_amplitude(self):
    attack, state = setup(reduced_amplitude=16 / 255)
    want = np.clip(crafted.IMAGES.astype(int) + 16 * SIGNS, 0, 255)
    np.testing.assert_array_equal(crafted.stamp(attack, state), want)

  def test_untouched_rows_are_bit_identical(self):
    attack, state = setup()
    data = crafted.batch()
    data['image'] = jnp.asarray(crafted.RNG.random(OTHER.shape), jnp.float32)
    got = attack.poison(state, data, crafted.KEY)
    clean = np.asarray(state.kind) == types.CLEAN
    np.testing.assert_array_equal(got['image'][clean], data['image'][clean])
    outside = {**data, 'index': data['index'] + 40}
    beyond = attack.poison(state, outside, crafted.KEY)
    np.testing.assert_array_equal(beyond['image'], data['image'])

  def test_without_bases_the_images_themselves_are_marked(self):
    attack, state = setup(None, adv_images='none')
    levels, _, poisoned = poisoned_bytes(attack, state)
    want = marked(crafted.IMAGES[poisoned])
    np.testing.assert_array_equal(levels[poisoned], want)
    crafter = attacks.CRAFTERS['lc']
    self.assertFalse(crafter.is_wanted(attacks.LcHParams(adv_images='none')))

  def test_vmap_over_amplitudes_equals_loop(self):
    images = jnp.asarray(crafted.IMAGES[:3]) / 255

    def run(amplitude):
      attack, state = setup(reduced_amplitude=amplitude)
      return attack.stamp(state, images, crafted.KEY, np.arange(3))

    amplitudes = jnp.asarray([0.0, 0.3, 1.0])
    looped = np.stack([run(float(a)) for a in amplitudes])
    np.testing.assert_array_equal(jax.vmap(run)(amplitudes), looped)

  def test_bad_values(self):
    with self.assertRaisesRegex(attacks.MissingAsset, "adv_images='none'"):
      setup(None)
    with self.assertRaisesRegex(KeyError, "Unknown asset 'adv_images'"):
      setup(adv_images='none')
    with self.assertRaisesRegex(ValueError, 'leaves labels as they are'):
      setup(clean_label=False)
    with self.assertRaisesRegex(ValueError, "label_mode='all2all'"):
      setup(label_mode='all2all')
    with self.assertRaisesRegex(ValueError, 'of which 10 are of the target'):
      setup(OTHER[:9])
    with self.assertRaisesRegex(ValueError, '`poison_ratio` ≤ 0.25'):
      setup(poison_ratio=0.5)
    with self.assertRaisesRegex(TypeError, 'dtype float64'):
      setup(OTHER / 255)
    with self.assertRaisesRegex(ValueError, '`reduced_amplitude=2'):
      setup(reduced_amplitude=2.0)
    with self.assertRaisesRegex(ValueError, '`target_label=7` has no train'):
      craft(target_label=7)


class CraftTest(parameterized.TestCase):
  @parameterized.parameters(4, 16)
  def test_perturbed_images_stay_within_eps_of_their_own(self, level):
    got = craft(eps=level / 255, step_size=level / 5 / 255)
    gap = np.abs(got.astype(int) - of_class(0))
    self.assertLessEqual(gap.max(), level)
    self.assertGreater(gap.max(), level / 2)

  def test_one_step_on_a_linear_model_by_hand(self):
    net = linear.classifier(crafted.SPEC)
    model = net.init(crafted.KEY)
    hp = attacks.LcHParams(steps=1, step_size=3 / 255, target_label=3)
    images = np.clip(crafted.IMAGES, 10, 245)
    got = attacks.CRAFTERS['lc'].craft(
      crafted.KEY, net, model, images, crafted.LABELS, hp
    )['adv_images']
    clean = of_class(3, images)
    kernel = np.asarray(model.params['kernel'], np.float64)
    p = jax.nn.softmax(net.apply(model, jnp.asarray(clean) / 255)[0])
    # The gradient of −log p_t, up to its size.
    grad = np.einsum('bn,dn->bd', np.asarray(p, np.float64), kernel)
    grad = (grad - kernel[:, 3][None]).reshape(clean.shape)
    sure = np.abs(grad) > 1e-4
    want = clean + 3 * np.sign(grad).astype(int)
    np.testing.assert_array_equal(got[sure], want[sure])
    self.assertGreater(sure.mean(), 0.5)

  def test_the_model_believes_less_in_the_class(self):
    classifier, model = crafted.network()
    belief = lambda images: jax.nn.log_softmax(
      classifier.apply(model, jnp.asarray(images) / 255)[0]
    )[:, 0]
    self.assertTrue((belief(craft()) < belief(of_class(0))).all())

  def test_batches_change_nothing(self):
    hp = attacks.LcHParams(steps=2)
    run = lambda size: attacks.CRAFTERS['lc'].craft(
      crafted.KEY, *crafted.network(), crafted.IMAGES, crafted.LABELS, hp,
      batch_size=size,
    )  # fmt: skip
    whole = run(256)['adv_images']
    for size in (3, 10):
      got = run(size)['adv_images'].astype(int)
      self.assertEqual(got.shape, whole.shape)
      # Sums of other batches round differently; a sign may turn at zero.
      self.assertLess(np.mean(got != whole), 0.01)

  def test_depends_on_what_the_crafter_says(self):
    np.testing.assert_array_equal(
      craft(), craft(poison_ratio=0.1, corners='bottom_right', seed=1)
    )
    self.assertFalse(np.array_equal(craft(), craft(steps=2)))
