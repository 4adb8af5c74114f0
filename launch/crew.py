"""Several processes at one study: who does which part of a stage.

Programs are compiled by one thread each, and compilation is half of a small
study; a second process uses the second core. The processes share nothing but
the store: parts do not overlap, and what is finished is found there.
"""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
  'part', None, 'STAGE:I/N, set by --jobs for the processes it starts.'
)


class Part(NamedTuple):
  """A share of one stage.

  Attributes:
    stage: name of the stage.
    i: which share, counted from 0.
    n: number of shares.
  """

  stage: str
  i: int
  n: int

  def of(self, work: Sequence[_T]) -> Sequence[_T]:
    """Every n-th piece, from the i-th on."""
    return work[self.i :: self.n]

  def mirrored(self) -> 'Part':
    """The share that this one is counted from the other end."""
    return self._replace(i=self.n - 1 - self.i)

  def __str__(self) -> str:
    return f'{self.stage}:{self.i}/{self.n}'


def parse(text: str) -> Part:
  """The part that a flag names.

  Raises:
    ValueError: if it names none.
  """
  try:
    stage, share = text.split(':')
    i, n = map(int, share.split('/'))
  except ValueError:
    i, n, stage = 0, 0, ''
  if not (stage and 0 <= i < n):
    raise ValueError(
      f'`--part={text}` is not of the form STAGE:I/N with I < N; leave it to '
      '--jobs.'
    )
  return Part(stage, i, n)


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
  parts = [Part(stage, i, jobs) for i in range(1, jobs)]
  logs = [folder / f'{stage}-{part.i}.log' for part in parts]
  others = [_start(part, log) for part, log in zip(parts, logs, strict=True)]
  try:
    yield Part(stage, 0, jobs)
    codes = [other.wait() for other in others]
  finally:
    for other in others:
      other.terminate()  # does nothing to one that has ended
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
