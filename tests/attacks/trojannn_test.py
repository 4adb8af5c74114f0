"""TrojanNN: composing by hand, the neurons, what the search guarantees."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import attacks, surgery, types
from bdjax.attacks import pictures
from bdjax.attacks.crafting import neurons as neurons_lib
from tests.attacks import crafted

MARK = np.zeros((8, 8, 3), np.uint8)
MARK[5:7, 5:7] = 200
MARK[5, 5, 0] = 1


def setup(mark=MARK, **kwargs):
  hp = attacks.TrojanNNHParams(**kwargs)
  attack = attacks.trojannn(crafted.SPEC, hp, {'mark': mark})
  return attack, attack.init(crafted.KEY, crafted.IMAGES, crafted.LABELS)


def craft(assets=None, **kwargs):
  hp = attacks.TrojanNNHParams(**{'steps': 20} | kwargs)
  data = crafted.IMAGES, crafted.LABELS
  crafter = attacks.CRAFTERS['trojannn']
  return crafter.craft(crafted.KEY, *crafted.network(), *data, hp, assets)


def search(mask, **kwargs):
  classifier, model = crafted.network()
  neurons = neurons_lib.heaviest(classifier, model, 2)
  options = dict(value=100.0, eps=0.3, step=0.1, steps=20) | kwargs
  return neurons_lib.search(classifier, model, mask, neurons, **options)


def soft_mask():
  return jnp.asarray(pictures.apple_mask((8, 8, 3)), jnp.float32) / 255


class TrojanNNTest(parameterized.TestCase):
  @parameterized.parameters('replace', 'add_clip', 'wrap')
  def test_composing_by_hand(self, compose):
    x = crafted.IMAGES.astype(int)
    want = {
      'replace': np.broadcast_to(MARK, x.shape),
      'add_clip': np.minimum(x + MARK, 255),
      'wrap': (x + MARK) % 256,
    }[compose]
    want = np.where(MARK > 0, want, x)
    got = crafted.stamp(*setup(compose=compose))
    np.testing.assert_array_equal(got, want)

  @parameterized.parameters('replace', 'add_clip', 'wrap')
  def test_elements_outside_of_the_mark_are_bit_identical(self, compose):
    attack, state = setup(compose=compose)
    images = jnp.asarray(crafted.RNG.random((4, 8, 8, 3)), jnp.float32)
    got = attack.stamp(state, images, crafted.KEY, np.arange(4))
    outside = MARK == 0
    np.testing.assert_array_equal(got[:, outside], images[:, outside])

  def test_untouched_rows_are_bit_identical(self):
    attack, state = setup(target_label=2)
    data = crafted.batch()
    got = attack.poison(state, data, crafted.KEY)
    poisoned = np.asarray(state.kind) == types.POISONED
    self.assertEqual(poisoned.sum(), 4)
    for name in ('image', 'label'):
      np.testing.assert_array_equal(got[name][~poisoned], data[name][~poisoned])
    np.testing.assert_array_equal(got['label'][poisoned], 2)

  def test_marks_of_another_size_are_scaled(self):
    mark = np.zeros((16, 16), np.uint8)
    mark[8:, 8:] = 255
    _, state = setup(mark)
    got = np.asarray(state.trigger['mark'])
    self.assertEqual(got.shape, (8, 8, 3))
    self.assertTrue((got[5:, 5:] == 255).all())
    self.assertFalse(got[:3].any())

  def test_bad_values(self):
    with self.assertRaisesRegex(attacks.MissingAsset, "'mark', which is craf"):
      attacks.trojannn(crafted.SPEC, None, {'mask_image': MARK})
    with self.assertRaisesRegex(KeyError, "Unknown asset 'marks'"):
      attacks.trojannn(crafted.SPEC, None, {'marks': MARK})
    with self.assertRaisesRegex(ValueError, 'black throughout'):
      setup(np.zeros_like(MARK))
    with self.assertRaisesRegex(ValueError, "Did you mean 'replace'"):
      setup(compose='replaced')
    with self.assertRaisesRegex(ValueError, "`mask_image='pear'`"):
      setup(mask_image='pear')
    with self.assertRaisesRegex(ValueError, '`num_neuron=9` exceeds the 8'):
      craft(num_neuron=9)
    with self.assertRaisesRegex(ValueError, 'write 77/255'):
      craft(eps=77.0)
    with self.assertRaisesRegex(ValueError, 'the mark would be nowhere'):
      craft({'mask_image': np.zeros((4, 4), np.uint8)})


class CraftTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.3)
  def test_marks_stay_in_the_ball_around_the_mask(self, eps):
    mask = soft_mask()
    found = search(mask, eps=eps)
    self.assertLessEqual(float(jnp.abs(found.image - mask).max()), eps + 1e-6)
    self.assertBetween(float(found.image.min()), 0, 1)
    self.assertBetween(float(found.image.max()), 0, 1)
    self.assertGreater(float(jnp.abs(found.image - mask).max()), eps / 2)

  def test_marks_are_zero_outside_of_the_mask(self):
    mask = np.asarray(soft_mask())
    np.testing.assert_array_equal(np.asarray(search(mask).image)[mask == 0], 0)
    mark = craft()['mark']
    np.testing.assert_array_equal(mark > 0, mask > 0)

  def test_the_crafted_mark_excites_the_neurons_more_than_the_mask_alone(self):
    found = search(soft_mask())
    self.assertLess(float(found.loss), float(found.first_loss))
    classifier, model = crafted.network()
    neurons = neurons_lib.heaviest(classifier, model, 2)
    for image, loss in (
      (found.image, found.loss),
      (soft_mask(), found.first_loss),
    ):
      seen = classifier.features(model, image[None])['penultimate'][0, neurons]
      np.testing.assert_allclose(jnp.sum((seen - 100) ** 2), loss, rtol=1e-5)

  def test_one_step_by_hand(self):
    mask = jnp.full((8, 8, 3), 0.5)
    classifier, model = crafted.network()
    neurons = neurons_lib.heaviest(classifier, model, 2)

    def loss_fn(z):
      seen = classifier.features(model, z[None])['penultimate'][0, neurons]
      return jnp.sum((seen - 100) ** 2)

    want = mask - 0.1 * jnp.sign(jax.grad(loss_fn)(mask))
    got = search(mask, steps=1)
    self.assertLess(float(loss_fn(want)), float(loss_fn(mask)))
    np.testing.assert_allclose(got.image, want, atol=1e-6)
    np.testing.assert_allclose(got.loss, loss_fn(want), rtol=1e-5)

  def test_ends_where_the_neurons_are_as_wanted(self):
    mask = soft_mask()
    classifier, model = crafted.network()
    seen = classifier.features(model, mask[None])['penultimate'][0]
    value = float(seen[3])
    found = neurons_lib.search(
      classifier, model, mask, np.array([3]), value=value, eps=0.3, step=0.1,
      steps=50,
    )  # fmt: skip
    np.testing.assert_array_equal(found.image, mask)

  def test_heaviest_neurons_by_hand(self):
    classifier, model = crafted.network()
    head, body = surgery.split_head(classifier, model.params)
    kernel = np.zeros((8, 4), np.float32)
    kernel[5], kernel[2], kernel[7] = -3, 2, [9, -9, 0, 0]
    head = {**head, 'kernel': jnp.asarray(kernel)}
    params = surgery.join_head(classifier, head, body)
    model = types.ModelState(params=params, batch_stats=model.batch_stats)
    got = neurons_lib.heaviest(classifier, model, 3)
    self.assertEqual(got.tolist(), [7, 5, 2])

  def test_a_mask_of_ones_own(self):
    mask = np.zeros((8, 8), np.uint8)
    mask[:2] = 255
    mark = craft({'mask_image': mask})['mark']
    self.assertTrue((mark[:2] > 0).all())
    self.assertFalse(mark[2:].any())

  def test_depends_on_what_the_crafter_says(self):
    first = craft()['mark']
    np.testing.assert_array_equal(
      first, craft(poison_ratio=0.5, compose='wrap', target_label=3)['mark']
    )
    self.assertFalse(np.array_equal(first, craft(eps=0.1)['mark']))

  @parameterized.parameters(16, 32, 64)
  def test_apple_lies_in_its_box(self, side):
    for box in (False, True):
      mask = pictures.apple_mask((side, side, 3), box=box)[..., 0]
      rows, columns = np.nonzero(mask > 127)
      self.assertBetween(rows.min() / side, 0.5, 0.66)
      self.assertBetween((rows.max() + 1) / side, 0.86, 0.95)
      self.assertBetween(columns.min() / side, 0.53, 0.63)
      self.assertBetween((columns.max() + 1) / side, 0.8, 0.9)
