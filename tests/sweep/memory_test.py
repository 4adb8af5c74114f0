"""Chunks from bytes, by hand-computed numbers."""

import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.sweep import memory


def device(stats):
  return python_types.SimpleNamespace(memory_stats=lambda: stats)


def program(stats):
  return python_types.SimpleNamespace(memory_analysis=lambda: stats)


class DeviceBudgetTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'bytes_limit': 1000}, 500),
    ({'bytes_in_use': 7}, 4 * 2**30),
    (None, 4 * 2**30),
  )
  def test_half_of_what_the_device_reports(self, stats, want):
    self.assertEqual(memory.device_budget(device(stats)), want)

  def test_the_default_device_has_a_budget(self):
    self.assertGreater(memory.device_budget(), 0)


class MemberBytesTest(parameterized.TestCase):
  stack = {'w': jnp.zeros((5, 10)), 'n': jnp.zeros((5,), jnp.int8)}  # 41 each

  def test_member_plus_temporaries_plus_results(self):
    stats = python_types.SimpleNamespace(
      temp_size_in_bytes=100, output_size_in_bytes=20
    )
    got = memory.member_bytes(self.stack, program(stats))
    self.assertEqual(got, 41 + 100 + 20)

  def test_a_multiple_of_the_member_where_nothing_is_reported(self):
    want = 41 * memory.FALLBACK_FACTOR
    self.assertEqual(memory.member_bytes(self.stack), want)
    self.assertEqual(memory.member_bytes(self.stack, program(None)), want)

  def test_a_backend_without_analysis_falls_back(self):
    def refuse():
      raise NotImplementedError

    silent = python_types.SimpleNamespace(memory_analysis=refuse)
    want = 41 * memory.FALLBACK_FACTOR
    self.assertEqual(memory.member_bytes(self.stack, silent), want)

  def test_temporaries_alone(self):
    stats = python_types.SimpleNamespace(temp_size_in_bytes=100)
    self.assertEqual(memory.temporary_bytes(program(stats)), 100)
    self.assertIsNone(memory.temporary_bytes(program(None)))

  def test_abstract_stacks_count_as_what_they_stand_for(self):
    abstract = jax.eval_shape(lambda: self.stack)
    got = memory.member_bytes(abstract)
    self.assertEqual(got, 41 * memory.FALLBACK_FACTOR)

  def test_a_stack_of_keys_takes_at_least_a_byte(self):
    keys = jax.random.split(jax.random.key(0), 3)
    self.assertEqual(memory.member_bytes(keys), 1)


class FittingChunkTest(parameterized.TestCase):
  @parameterized.parameters(
    (8, 10, 80, 8),
    (8, 10, 1000, 8),
    (8, 10, 40, 4),
    (9, 10, 80, 5),  # 5 + 4 rather than 8 + 1
    (10, 10, 40, 4),  # 4 + 4 + 2: three chunks either way
    (10, 10, 39, 3),
    (3, 10, 5, 1),  # over the budget: there is nothing smaller than one
    (1, 10, 80, 1),
  )
  def test_chunk(self, m, bytes_each, budget, want):
    self.assertEqual(memory.fitting_chunk(m, bytes_each, budget), want)

  def test_never_more_chunks_than_the_budget_asks_for(self):
    rng = np.random.default_rng(0)
    for m, each, budget in rng.integers(1, 60, (200, 3)):
      chunk = memory.fitting_chunk(int(m), int(each), int(budget))
      most = max(1, min(m, budget // each))
      self.assertBetween(chunk, 1, most)
      self.assertEqual(-(-m // chunk), -(-m // most))
