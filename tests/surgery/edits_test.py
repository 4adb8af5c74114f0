"""Inserted edits: what they change, and how they go with those of a call."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import surgery
from tests import small_nets

NET = small_nets.conv_net(width=4)
STATE = NET.init(jax.random.key(0))
IMAGES = jnp.asarray(small_nets.random_images(0, 3), jnp.float32) / 255


class InsertTest(parameterized.TestCase):
  def test_equals_the_edit_of_a_call(self):
    edits = {'conv2.in': lambda x: 2 * x}
    net = surgery.insert(NET, edits)
    want = NET.features(STATE, IMAGES, edits=edits)
    got = net.features(STATE, IMAGES)
    self.assertEqual(got.keys(), want.keys())
    for tap in want:
      np.testing.assert_array_equal(got[tap], want[tap])
    np.testing.assert_array_equal(net.apply(STATE, IMAGES)[0], want['logits'])
    self.assertEqual(net.info, NET.info)

  def test_a_later_edit_at_the_same_tap_sees_the_inserted_one(self):
    net = surgery.insert(NET, {'logits': lambda x: x + 1})
    logits, _ = net.apply(STATE, IMAGES, edits={'logits': lambda x: 10 * x})
    plain, _ = NET.apply(STATE, IMAGES)
    np.testing.assert_allclose(logits, 10 * (plain + 1), rtol=1e-6)

  def test_edits_at_other_taps_are_both_there(self):
    net = surgery.insert(NET, {'penultimate': lambda x: 0 * x})
    edits = {'logits': lambda x: x + 3}
    logits, _ = net.apply(STATE, IMAGES, edits=edits)
    np.testing.assert_array_equal(logits, np.full((3, 4), 3.0))

  def test_training_mode_reaches_the_network(self):
    net = surgery.insert(NET, {'conv2.in': lambda x: x})
    _, after = net.apply(STATE, IMAGES, train=True)
    _, want = NET.apply(STATE, IMAGES, train=True)
    np.testing.assert_array_equal(
      after.batch_stats['bn0']['mean'], want.batch_stats['bn0']['mean']
    )

  def test_unknown_tap(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'conv2.in'"):
      surgery.insert(NET, {'conv2.inn': lambda x: x})
