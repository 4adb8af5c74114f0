"""The recalibrating phase is the function of its batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import surgery, training, types
from tests import small_nets

NET = small_nets.conv_net(size=8, classes=4, width=4)
KEY = jax.random.key(0)
IMAGES = small_nets.random_images(0, 12)


def recalibrated(batch_size, model, chunk=None):
  phase = training.recalibration(
    NET, name='statistics', batch_size=batch_size, reads='clean'
  )
  feed = training.make_feed(IMAGES, np.zeros(12, np.int32))
  carry = types.Carry(model=model, extra={'kept': jnp.ones(2)})
  return training.run_phases((phase,), carry, {'clean': feed}, KEY, chunk=chunk)


class RecalibrationTest(parameterized.TestCase):
  def test_one_batch_is_one_call(self):
    model = NET.init(KEY)
    carry, metrics = recalibrated(12, model)
    batch = jnp.asarray(IMAGES, jnp.float32)[None] / 255
    want = surgery.reestimate_bn(NET, model, batch)
    chex.assert_trees_all_close(carry.model, want, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_equal(carry.model.params, model.params)
    chex.assert_trees_all_equal(carry.extra, {'kept': jnp.ones(2)})
    self.assertEqual(metrics['statistics']['batches'].tolist(), [1])

  def test_first_layer_pools_all_batches(self):
    # It sees the same whatever the batches, so that with biased variances
    # those of the parts and of their means are those of the whole.
    model = NET.init(KEY)
    whole, _ = recalibrated(12, model)
    parts, metrics = recalibrated(4, model, chunk=1)
    got, want = (carry.model.batch_stats['bn0'] for carry in (parts, whole))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)
    self.assertEqual(metrics['statistics']['batches'].tolist(), [1, 2, 3])

  def test_old_statistics_have_no_influence(self):
    model = NET.init(KEY)
    wild = types.ModelState(
      params=model.params,
      batch_stats=jax.tree.map(lambda x: 7 + 3 * x, model.batch_stats),
    )
    one, other = (recalibrated(4, state)[0].model for state in (model, wild))
    chex.assert_trees_all_equal(one, other)

  def test_net_without_norms_stays(self):
    net = small_nets.linear_net(8, 4)
    phase = training.recalibration(
      net, name='statistics', batch_size=4, reads='clean'
    )
    model = net.init(KEY)
    carry, _ = training.run_phases(
      (phase,),
      types.Carry(model=model, extra={}),
      {'clean': training.make_feed(IMAGES, np.zeros(12, np.int32))},
      KEY,
    )
    chex.assert_trees_all_equal(carry.model, model)
