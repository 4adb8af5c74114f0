"""Timings: what counts as running, and what as compiling and setting up."""

from unittest import mock

from absl.testing import parameterized

from bdjax import training
from launch import show


def report(phase, seconds):
  return training.ChunkReport(
    phase=phase, step=1, num_steps=3, metrics={}, seconds=seconds
  )


class TimerTest(parameterized.TestCase):
  def timed(self, total, *chunks):
    """A timer after chunks of (phase, seconds) within a total of seconds."""
    with mock.patch('time.monotonic', side_effect=[100.0, 100.0 + total]):
      timer, seen = show.Timer(), set()
      for phase, seconds in chunks:
        timer.add(report(phase, seconds), phase not in seen)
        seen.add(phase)
      timer.stop()
    return timer

  @parameterized.named_parameters(
    ('no_chunk', 4.0, (), 0.0),
    ('first_as_the_median', 10.0, (('a', 5), ('a', 1), ('a', 2), ('a', 1)), 5),
    ('a_first_that_is_quicker', 4.0, (('a', 1), ('a', 3)), 4.0),
    ('two_phases', 9.0, (('a', 3), ('a', 1), ('b', 2), ('b', 1)), 4.0),
    ('only_first', 9.0, (('a', 3), ('b', 2)), 0.0),
  )
  def test_running_and_the_rest_are_the_whole(self, total, chunks, run_s):
    timer = self.timed(total, *chunks)
    self.assertAlmostEqual(timer.run_s, run_s)
    self.assertAlmostEqual(timer.compile_s, total - run_s)

  def test_rate_is_of_running_alone(self):
    timer = self.timed(9.0, ('a', 3), ('a', 1), ('a', 1))
    self.assertEqual(timer.cost(60)['examples_per_s'], 20.0)
    self.assertIsNone(self.timed(9.0).cost(60)['examples_per_s'])
