"""Streams are addressed by name, step and example."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from bdjax import keys


class KeysTest(absltest.TestCase):
  def test_root_is_a_typed_key_of_its_seed(self):
    self.assertEqual(keys.root(3), jax.random.key(3))
    self.assertNotEqual(keys.root(3), keys.root(4))

  def test_streams_of_one_key_differ_by_name_only(self):
    key = keys.root(0)
    names = ('init', 'data', 'augment', 'trigger', 'method')
    streams = jnp.stack([keys.stream(key, name) for name in names])
    data = np.asarray(jax.random.key_data(streams))
    self.assertLen(np.unique(data, axis=0), len(names))
    self.assertEqual(keys.stream(key, 'init'), streams[0])

  def test_a_stream_is_the_same_in_every_process(self):
    # crc32('123456789'), the checksum's published check value.
    got = keys.stream(keys.root(0), '123456789')
    self.assertEqual(got, jax.random.fold_in(keys.root(0), 0xCBF43926))

  def test_a_stream_of_a_legacy_key_is_refused(self):
    with self.assertRaisesRegex(TypeError, r'jax\.random\.key\(seed\)'):
      keys.stream(np.zeros(2, np.uint32), 'init')

  def test_steps_may_be_traced(self):
    key = keys.root(0)
    want = [keys.at(key, step) for step in range(3)]
    got = jax.vmap(lambda step: keys.at(key, step))(jnp.arange(3))
    for x, y in zip(got, want, strict=True):
      self.assertEqual(x, y)
    self.assertNotEqual(want[0], want[1])

  def test_example_keys_ignore_batching_and_order(self):
    key = keys.root(0)
    whole = keys.per_example(key, np.arange(10))
    some = keys.per_example(key, np.array([7, 2, 7]))
    self.assertEqual(some.shape, (3,))
    for got, index in zip(some, (7, 2, 7), strict=True):
      self.assertEqual(got, whole[index])
    self.assertNotEqual(whole[2], whole[7])
