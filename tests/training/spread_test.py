"""Data parallelism: the numbers of one device, on really divided batches."""

import functools

import chex
import jax
import numpy as np
from absl.testing import parameterized

from bdjax import keys, training, types
from tests import toy

KEY = keys.root(0)


def phase(**length):
  usual = dict(num_epochs=1, batch_size=16, reads='train', augment=True)
  return training.supervised(
    toy.classifier(),
    training.optimizer(toy.RECIPE),
    name='train',
    **usual | length,
  )


@functools.cache
def feeds():
  images, labels = toy.dataset().train
  return {'train': training.make_feed(images[:96], labels[:96])}


def train(phases, **kwargs):
  model = toy.classifier().init(KEY)
  carry = types.Carry(model=model, extra={})
  return training.run_phases(
    phases, carry, feeds(), KEY, augment=toy.augment(), **kwargs
  )


def watched(inner, seen):
  """The phase, which tells how its batches lie on the devices."""

  def step(state, batch, clock):
    jax.debug.inspect_array_sharding(batch['image'], callback=seen.append)
    return inner.step(state, batch, clock)

  return inner._replace(step=step)


class SpreadTest(parameterized.TestCase):
  @parameterized.parameters(2, 4)
  def test_gives_the_numbers_of_a_single_device(self, num):
    # Several chunks; dropping nothing, the last batch wraps round.
    how = dict(chunk=2, on_chunk=lambda report: None)
    phases = (phase(batch_size=20, drop_last=False),)
    single, want = train(phases, **how)
    carry, got = train(phases, devices=jax.devices()[:num], **how)
    chex.assert_trees_all_close(carry, single, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(got, want, rtol=1e-4)
    self.assertLen(got['train']['loss'], 5)

  def test_every_device_gets_its_share_of_a_batch(self):
    seen = []
    carry, _ = train((watched(phase(), seen),), devices=jax.devices())
    self.assertNotEmpty(seen)
    for sharding in seen:
      self.assertEqual(sharding.shard_shape((16, 8, 8, 3)), (4, 8, 8, 3))
    for leaf in jax.tree.leaves(carry):
      self.assertTrue(leaf.sharding.is_fully_replicated)
      self.assertLen(leaf.sharding.device_set, 4)

  def test_training_under_an_attack_is_spread_as_well(self):
    attack, images = toy.attack('badnets'), toy.dataset().train.images[:96]
    state = attack.init(KEY, images, toy.dataset().train.labels[:96])
    phases = training.attack_phases(
      toy.classifier(),
      attack,
      training.optimizer(toy.RECIPE),
      augment=toy.augment(),
      name='implant',
      num_epochs=1,
      batch_size=32,
      reads='train',
    )
    start = types.Carry(model=toy.classifier().init(KEY), extra=state)
    run = functools.partial(
      training.run_phases, phases, start, feeds(), KEY, augment=toy.augment()
    )
    single, _ = run()
    carry, _ = run(devices=jax.devices())
    chex.assert_trees_all_close(carry, single, rtol=1e-4, atol=1e-6)

  def test_one_device_is_no_mesh(self):
    one, _ = train((phase(),), devices=jax.devices()[:1])
    chex.assert_trees_all_equal(one, train((phase(),))[0])

  def test_shares_that_do_not_fit(self):
    with self.assertRaisesRegex(
      ValueError, "4 of them.*18 examples.*'train'.*multiple"
    ):
      train((phase(batch_size=18),), devices=jax.devices())

  def test_stacks_are_spread_by_their_lift(self):
    with self.assertRaisesRegex(ValueError, "mode='shard'"):
      train((phase(),), devices=jax.devices(), lift=lambda fn: fn)

  def test_moments_are_those_of_the_whole_batch(self):
    """Statistics of quarters, averaged, would miss the spread between them."""
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    images += np.arange(4, dtype=np.uint8)[:, None, None, None] * 80
    feed = {'train': training.make_feed(images, labels)}
    carry = types.Carry(model=toy.classifier().init(KEY), extra={})
    stats = [
      training.run_phases(
        (phase(batch_size=4, augment=False),), carry, feed, KEY, devices=devices
      )[0].model.batch_stats
      for devices in (None, jax.devices())
    ]
    chex.assert_trees_all_close(*stats, rtol=1e-5, atol=1e-7)
