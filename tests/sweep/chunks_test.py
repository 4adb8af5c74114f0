"""The table of chunks: complete, and what a sweep goes by."""

from unittest import mock

import jax
import jax.numpy as jnp
from absl.testing import absltest

from bdjax import sweep, types
from bdjax.sweep import chunks


def _table(content):
  return mock.patch.object(chunks, 'table', return_value=content)


class ChunksTest(absltest.TestCase):
  def test_every_kind_names_a_chunk_and_what_was_measured(self):
    self.assertIn('cpu', chunks.table())
    for kind, entry in chunks.table().items():
      if entry['chunk'] is not None:
        self.assertGreaterEqual(entry['chunk'], 1, kind)
      self.assertIn('jax', entry['versions'])
      for times in entry['measured'].values():
        self.assertIn(str(entry['chunk'] or 8), times)

  def test_sweeps_take_the_chunk_of_the_device(self):
    kind = jax.devices()[0].device_kind
    stack = jnp.arange(6.0)
    for given, want in ((1, 1), (4, 4), (9, 6)):
      with _table({kind: {'chunk': given}}):
        self.assertEqual(sweep.lift(jnp.sin).chunk_for(stack), want)

  def test_a_budget_or_a_chunk_of_one_s_own_goes_before(self):
    kind, stack = jax.devices()[0].device_kind, jnp.arange(6.0)
    own = types.Exec(chunk=3)
    ample = types.Exec(memory_budget=2**30)
    with _table({kind: {'chunk': 1}}):
      self.assertEqual(sweep.lift(jnp.sin, own).chunk_for(stack), 3)
      self.assertEqual(sweep.lift(jnp.sin, ample).chunk_for(stack), 6)

  def test_where_nothing_was_measured_memory_decides(self):
    with _table({}):
      self.assertEqual(sweep.lift(jnp.sin).chunk_for(jnp.arange(6.0)), 6)
