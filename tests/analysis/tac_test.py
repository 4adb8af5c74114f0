import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.analysis import stream, tac
from tests import small_nets


def planted(size=8):
  """A conv net in which channel 5 of 'conv1' alone looks at the patch."""
  classifier = small_nets.conv_net(size)
  state = classifier.init(jax.random.key(0))
  params = jax.tree.map(jnp.zeros_like, state.params)
  params = params | {'bn0': state.params['bn0'], 'bn1': state.params['bn1']}
  params['stem'] = params['stem'].at[1, 1, :, 0].set(1.0)
  params['conv1'] = params['conv1'].at[1, 1, 0, 5].set(2.0)
  return classifier, type(state)(params=params, batch_stats=state.batch_stats)


def naive(classifier, state, clean, triggered, tap, norm):
  """The formula over all pairs at once, in NumPy."""
  a, b = (
    np.float64(classifier.features(state, np.float32(x) / np.float32(255))[tap])
    for x in (clean, triggered)
  )
  diff = b - a
  change = {
    'l2_of_map': np.sqrt((diff**2).sum((1, 2))).mean(0),
    'l1_sum': np.abs(diff).mean(0).sum((0, 1)),
    'abs_of_mean': np.abs(diff.mean((0, 1, 2))),
  }[norm]
  sizes = np.sqrt((np.concatenate([a, b]) ** 2).sum((1, 2, 3)))
  return change, change / sizes.mean()


class TacTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.classifier = small_nets.conv_net()
    self.state = self.classifier.init(jax.random.key(0))
    self.clean = small_nets.random_images(1, 7)
    self.triggered = small_nets.add_patch(self.clean)

  @parameterized.parameters(
    ('l2_of_map', 3), ('l2_of_map', 250), ('l1_sum', 3), ('abs_of_mean', 3)
  )
  def test_equals_the_formula_over_all_pairs(self, norm, batch_size):
    result = jax.jit(
      functools.partial(
        tac.measure, self.classifier, norm=norm, batch_size=batch_size
      )
    )(self.state, self.clean, self.triggered)
    for tap in ('conv1', 'conv2'):
      expected, relative = naive(
        self.classifier, self.state, self.clean, self.triggered, tap, norm
      )
      np.testing.assert_allclose(result.tac[tap], expected, rtol=2e-5)
      np.testing.assert_allclose(result.tac_relative[tap], relative, rtol=2e-5)

  def test_row9_no_trigger_no_change(self):
    result = tac.measure(self.classifier, self.state, self.clean, self.clean)
    for change in jax.tree.leaves(result):
      np.testing.assert_array_equal(change, 0)

  def test_row9_planted_channel_ranks_first_and_others_stay_zero(self):
    classifier, state = planted()
    result = tac.measure(classifier, state, self.clean, self.triggered)
    change = np.asarray(result.tac['conv1'])
    self.assertEqual(change.argmax(), 5)
    np.testing.assert_array_equal(np.delete(change, 5), 0)
    self.assertGreater(change[5], 0.1)

  def test_flat_taps_have_maps_of_one_position(self):
    result = tac.measure(
      self.classifier,
      self.state,
      self.clean,
      self.triggered,
      taps=('logits',),
    )
    a, b = (
      self.classifier.apply(self.state, stream.to_unit(x))[0]
      for x in (self.clean, self.triggered)
    )
    expected = np.abs(np.asarray(b - a)).mean(0)
    np.testing.assert_allclose(result.tac['logits'], expected, rtol=1e-5)

  def test_float_images_equal_bytes(self):
    measure = functools.partial(tac.measure, self.classifier, self.state)
    of_bytes = measure(self.clean, self.triggered)
    of_floats = measure(
      stream.to_unit(self.clean), stream.to_unit(self.triggered)
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      of_bytes,
      of_floats,
    )

  def test_errors_name_the_cure(self):
    with self.assertRaisesRegex(ValueError, 'no pairs'):
      tac.measure(self.classifier, self.state, self.clean, self.triggered[:3])
    with self.assertRaisesRegex(ValueError, "Did you mean 'conv\\d'"):
      tac.measure(
        self.classifier, self.state, self.clean, self.triggered, taps=('conv',)
      )
    with self.assertRaisesRegex(ValueError, 'l2_of_map'):
      tac.measure(
        self.classifier, self.state, self.clean, self.triggered, norm='l2'
      )


class StreamTest(parameterized.TestCase):
  @parameterized.parameters((7, 3, (3, 3)), (6, 3, (2, 3)), (2, 9, (1, 2)))
  def test_batches_cover_every_image_once(self, n, batch_size, shape):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None]
    batches, mask = stream.batched(images, batch_size)
    self.assertEqual(mask.shape, shape)
    seen = np.asarray(batches)[np.asarray(mask)].ravel()
    np.testing.assert_array_equal(seen, np.arange(n))
