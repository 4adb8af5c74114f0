"""The last feature map: what leads to it and what follows."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import checks, training
from bdjax.training import feature_map
from tests import small_nets

NET = small_nets.conv_net(size=8, classes=4, width=4)
MODEL = NET.init(jax.random.key(0))
IMAGES = jnp.asarray(small_nets.random_images(0, 6), jnp.float32) / 255


class FeatureMapTest(parameterized.TestCase):
  def test_sees_what_the_network_does(self):
    seen = training.see(NET, MODEL, IMAGES)
    features = NET.features(MODEL, IMAGES)
    np.testing.assert_array_equal(seen.map, features['penultimate_map'])
    np.testing.assert_array_equal(seen.logits, features['logits'])

  def test_training_gives_new_statistics(self):
    seen = training.see(NET, MODEL, IMAGES, train=True)
    want = NET.apply(MODEL, IMAGES, train=True)[1].batch_stats['bn1']['mean']
    got = seen.model.batch_stats['bn1']['mean']
    np.testing.assert_array_equal(got, want)

  def test_halves_make_a_whole(self):
    seen = training.see(NET, MODEL, IMAGES)
    got = training.see_from(NET, MODEL, 2 * seen.map)
    want = np.mean(2 * np.asarray(seen.map), (1, 2)) @ MODEL.params['head']
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_images_out_of_range_are_seen_as_they_are(self):
    images = IMAGES * 3 - 1
    got = training.see(NET, MODEL, images).logits
    # Traced values are not checked.
    want = jax.jit(lambda x: NET.apply(MODEL, x)[0])(images)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_shape_of_the_map(self):
    self.assertEqual(feature_map.map_shape(NET, MODEL), (8, 8, 8))

  def test_a_network_without_the_map_is_unsupported(self):
    with self.assertRaisesRegex(checks.Unsupported, r"tap\('penultimate_map'"):
      feature_map.require_map(small_nets.linear_net())
