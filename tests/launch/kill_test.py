"""A killed launcher goes on from its snapshot and ends with the same numbers.

Slow: whole runs in processes of their own.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from absl.testing import absltest

from bdjax import zoo
from tests.launch import toy

_KILLS = 3
_TIMEOUT = 300
_COMMAND = (
  '--config=configs/attacks/badnets.py:quick',
  '--config.train.epochs=100',
  '--snapshot_seconds=0.2',
)


def _start(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'launch.attack',
      *_COMMAND,
      f'--workdir={workdir}',
      f'--compilation_cache={cache}',
    ],
    cwd=toy.HOME,
    env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _finish(process: subprocess.Popen) -> str:
  out, _ = process.communicate(timeout=_TIMEOUT)
  if process.returncode:
    raise AssertionError(f'exit code {process.returncode}:\n{out}')
  return out


def _newest_step(workdir: pathlib.Path) -> int | None:
  """Step of the newest complete snapshot, None where there is none."""
  found = sorted(workdir.glob('.progress/*/*/position.json'))
  for path in reversed(found):
    if path.parent.name.isdecimal():
      try:
        return json.loads(path.read_text())['step']
      except FileNotFoundError:  # dropped meanwhile for a newer one
        continue
  return None


def _next_step(process, workdir: pathlib.Path, old: int | None) -> int:
  """Waits for a snapshot other than the old one; returns its step."""
  deadline = time.monotonic() + _TIMEOUT
  while time.monotonic() < deadline:
    step = _newest_step(workdir)
    if step is not None and step != old:
      return step
    if process.poll() is not None:
      raise AssertionError(f'ended early:\n{process.communicate()[0]}')
    time.sleep(0.02)
  raise AssertionError('no snapshot in time')


@pytest.mark.slow
class KillTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    room = tempfile.TemporaryDirectory(prefix='bdjax-kill-')
    self.addCleanup(room.cleanup)
    self.root = pathlib.Path(room.name)
    self.cache = self.root / 'xla'

  def start(self, workdir):
    process = _start(workdir, self.cache)
    self.addCleanup(process.kill)  # where an assertion fails before
    return process

  def kill(self, process):
    process.send_signal(signal.SIGKILL)
    process.communicate()
    self.assertEqual(process.returncode, -signal.SIGKILL)

  def test_killed_three_times(self):
    whole, broken = self.root / 'whole', self.root / 'broken'
    _finish(self.start(whole))
    (expected,) = zoo.find(whole, 'attacked')
    reached = None
    for _ in range(_KILLS):
      process = self.start(broken)
      step = _next_step(process, broken, reached)
      # From the beginning, the first snapshot would be an earlier one.
      self.assertGreater(step, reached or 0)
      time.sleep(random.uniform(0, 1))
      self.kill(process)
      self.assertEmpty(zoo.names(broken))
      self.assertFalse((broken / 'records.jsonl').exists())
      reached = _newest_step(broken)
      self.assertGreaterEqual(reached, step)
    _finish(self.start(broken))
    (found,) = zoo.find(broken, 'attacked')
    zoo.verify(found)
    self.assertEqual(found.name, expected.name)
    self.assertEqual(found.card.metrics, expected.card.metrics)
    # Every weight, and the curve of the loss from the first step to the last.
    for part in ('state/model', 'state/attack', 'arrays/arrays.npz'):
      self.assertEqual(found.content[part], expected.content[part], part)
    self.assertLen(zoo.records.read(broken / 'records.jsonl'), 1)
    self.assertEmpty(list(broken.glob('.progress/*')))

  def test_killed_at_any_moment(self):
    workdir = self.root / 'any'
    started = time.monotonic()
    _finish(self.start(self.root / 'once'))
    whole_run = time.monotonic() - started
    (expected,) = zoo.find(self.root / 'once', 'attacked')
    for _ in range(_KILLS):
      process = self.start(workdir)
      time.sleep(random.uniform(0, whole_run))
      process.send_signal(signal.SIGKILL)  # nothing, where it has ended
      process.communicate()
      for name in zoo.names(workdir):
        zoo.verify(zoo.open(workdir, name))
    _finish(self.start(workdir))
    (found,) = zoo.find(workdir, 'attacked')
    self.assertEqual(
      found.content['state/model'], expected.content['state/model']
    )
    self.assertEqual(found.card.metrics, expected.card.metrics)
    self.assertLen(zoo.records.read(workdir / 'records.jsonl'), 1)


if __name__ == '__main__':
  absltest.main()
