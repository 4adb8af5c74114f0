"""Parts cover a stage without overlap; a failed process is reported."""

import contextlib
import io
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import parameterized

from launch import crew


class PartTest(parameterized.TestCase):
  def test_processes_do_everything_once_whoever_comes_first(self):
    folder = pathlib.Path(self.create_tempdir())
    part = crew.Part('defend', folder)
    first, second = part.of('abcde'), part.of('abcde')
    done = [next(first), next(second), next(second), next(first), *second]
    self.assertEqual(done, list('abcde'))
    self.assertEmpty(list(first))

  def test_a_single_process_does_everything(self):
    self.assertEqual(list(crew.Part('defend').of('abc')), list('abc'))

  def test_text_and_back(self):
    part = crew.Part('defend', pathlib.Path(self.create_tempdir()))
    self.assertEqual(crew.parse(str(part)), part)

  @parameterized.parameters('', 'defend', 'defend:', 'defend:/no/folder', ':/')
  def test_bad_part(self, text):
    with self.assertRaisesRegex(ValueError, 'leave it to --jobs'):
      crew.parse(text)


class BesideTest(parameterized.TestCase):
  def run_beside(self, code):
    """What is printed beside processes that run Python code."""
    folder, started = pathlib.Path(self.create_tempdir()), []

    def start(part, log):
      started.append((part, log))
      return subprocess.Popen([sys.executable, '-c', code])

    said = io.StringIO()
    with (
      mock.patch.object(crew, '_start', start),
      contextlib.redirect_stdout(said),
      crew.beside('train', 3, folder / 'logs') as mine,
    ):
      self.assertEqual([part for part, _ in started], [mine] * 2)
      self.assertTrue(mine.claims.is_dir())
    self.assertFalse(mine.claims.exists())
    self.assertLen({log for _, log in started}, 2)
    return ' '.join(said.getvalue().split())

  def test_success_is_silent(self):
    self.assertEqual(self.run_beside(''), '')

  def test_failure_is_said_with_its_log(self):
    said = self.run_beside('raise SystemExit(3)')
    self.assertIn('exit code 3', said)
    self.assertIn('train-2.log', said.replace(' ', ''))

  def test_an_error_here_ends_the_others(self):
    folder, others = pathlib.Path(self.create_tempdir()), []

    def start(part, log):
      del part, log
      code = 'import time; time.sleep(60)'
      others.append(subprocess.Popen([sys.executable, '-c', code]))
      return others[-1]

    with (
      mock.patch.object(crew, '_start', start),
      self.assertRaises(KeyboardInterrupt),
      crew.beside('train', 2, folder),
    ):
      raise KeyboardInterrupt
    self.assertNotEqual(others[0].wait(timeout=10), 0)
