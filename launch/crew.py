"""Several processes at one study: who does which part of a stage.

Programs are compiled by one thread each, and compilation is half of a small
study; a second process uses the second core. They share nothing but the
store, where what is finished is found, and a folder in which each piece of work
is claimed by one of them.
"""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from absl import flags
from rich import markup

from launch import show

_T = TypeVar('_T')

JOBS = flags.DEFINE_integer(
  'jobs',
  1,
  'Processes that share the work; each takes the memory of one.',
  lower_bound=1,
)
PART = flags.DEFINE_string(
  'part', None, 'STAGE:FOLDER, set by --jobs for the processes it starts.'
)


class Part(NamedTuple):
  """What one process does of a stage: whatever it is the first to claim.

  Attributes:
    stage: name of the stage.
    claims: folder with a file for each piece that has been claimed; None = a
      single process, which does all of them.
  """

  stage: str
  claims: pathlib.Path | None = None

  def of(self, work: Iterable[_T]) -> Iterator[_T]:
    """The pieces that fall to this process, each when its turn comes.

    Args:
      work: all pieces, the same in every process; the longest ones first, so
        that all processes end at about the same time.

    Yields:
      A piece that no other process has.
    """
    for i, piece in enumerate(work):
      if self.claims is None or _claim(self.claims / str(i)):
        yield piece

  def __str__(self) -> str:
    return f'{self.stage}:{self.claims}'


def _claim(path: pathlib.Path) -> bool:
  """Whether this process is the first to want something."""
  try:
    path.touch(exist_ok=False)
  except FileExistsError:
    return False
  return True


def parse(text: str) -> Part:
  """The part that a flag names.

  Raises:
    ValueError: if it names none.
  """
  stage, _, folder = text.partition(':')
  if not stage or not folder or not pathlib.Path(folder).is_dir():
    raise ValueError(
      f'`--part={text}` is not of the form STAGE:FOLDER; leave it to --jobs.'
    )
  return Part(stage, pathlib.Path(folder))


@contextlib.contextmanager
def beside(stage: str, jobs: int, folder: pathlib.Path) -> Iterator[Part]:
  """Starts the other processes of a stage, and waits for them in the end.

  They run this program's own command. What a failed one leaves undone is for
  the caller to do.

  Args:
    stage: its name.
    jobs: processes in all.
    folder: where the others' output goes, '<stage>-<i>.log'.

  Yields:
    The caller's own part.
  """
  folder.mkdir(parents=True, exist_ok=True)
  claims = pathlib.Path(tempfile.mkdtemp(prefix=f'{stage}-', dir=folder))
  part = Part(stage, claims.absolute())
  logs = [folder / f'{stage}-{i}.log' for i in range(1, jobs)]
  others = [_start(part, log) for log in logs]
  try:
    yield part
    codes = [other.wait() for other in others]
  finally:
    for other in others:
      other.terminate()  # does nothing to one that has ended
    shutil.rmtree(claims, ignore_errors=True)
  for log, code in zip(logs, codes, strict=True):
    if code:
      show.done(
        markup.escape(
          f'a process of stage {stage} ended with exit code {code} ({log}); '
          'its work is done here.'
        )
      )


def _start(part: Part, log: pathlib.Path) -> subprocess.Popen:
  module = sys.modules['__main__'].__spec__
  assert module is not None  # launchers are run by python -m
  command = [sys.executable, '-m', module.name, *sys.argv[1:]]
  with open(log, 'wb') as output:
    return subprocess.Popen(
      [*command, '--jobs=1', f'--part={part}'],
      stdout=output,
      stderr=subprocess.STDOUT,
    )
