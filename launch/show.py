"""Progress on the terminal: a bar with loss and time left, and timings."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import rich.console
import rich.progress

from bdjax import training

# Wide enough for the report's table where output goes to a file or a pipe.
CONSOLE = rich.console.Console()
if not CONSOLE.is_terminal:
  CONSOLE.width = 110


class Timer:
  """Splits a run's seconds into compiling and running, chunk by chunk.

  A phase's first chunk compiles; what it takes beyond the median of the
  others counts as compilation, all of it where there are no others. So does
  what passes outside chunks, where phases begin and end: there small programs
  compile, and one-shot methods do all their work.
  """

  def __init__(self):
    self.first: list[float] = []
    self.later: dict[int, list[float]] = {}
    self.began = time.monotonic()
    self.ended: float | None = None

  def stop(self) -> None:
    """Ends the run."""
    self.ended = time.monotonic()

  def add(self, report: training.ChunkReport, is_first: bool) -> None:
    """Takes a chunk's report."""
    if is_first:
      self.first.append(report.seconds)
      self.later[len(self.first)] = []
    else:
      self.later[len(self.first)].append(report.seconds)

  @property
  def compile_s(self) -> float:
    """Seconds of compilation and of setting up."""
    ended = time.monotonic() if self.ended is None else self.ended
    return max(0.0, ended - self.began - self.run_s)

  @property
  def run_s(self) -> float:
    """Seconds of running: all chunks, the first of a phase as its median."""
    total = 0.0
    for i, first in enumerate(self.first, start=1):
      later = self.later[i]
      total += sum(later) + (
        min(first, statistics.median(later)) if later else 0.0
      )
    return total

  def cost(self, examples: int) -> dict[str, float | None]:
    """The record fields on time, for this many examples in all."""
    rate = examples / self.run_s if self.run_s > 0 else None
    return {
      'compile_s': self.compile_s,
      'run_s': self.run_s,
      'examples_per_s': rate,
    }


@contextmanager
def bar(title: str) -> Iterator[tuple]:
  """A progress bar fed by the training loop.

  Args:
    title: what is being run.

  Yields:
    (on_chunk for `training.run_phases`, the Timer).
  """
  timer = Timer()
  columns = (
    rich.progress.TextColumn('{task.description}'),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.TextColumn('{task.completed}/{task.total}'),
    rich.progress.TextColumn('{task.fields[loss]}'),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn('left'),
    rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=CONSOLE) as progress:
    tasks: dict[str, rich.progress.TaskID] = {}

    def on_chunk(report: training.ChunkReport) -> None:
      is_first = report.phase not in tasks
      if is_first:
        name = f'{title} · {report.phase}'
        tasks[report.phase] = progress.add_task(
          name, total=report.num_steps, loss=''
        )
      timer.add(report, is_first)
      loss = report.metrics.get('loss')
      text = '' if loss is None else f'loss {np.nanmean(loss[..., -1]):.4f}'
      progress.update(tasks[report.phase], completed=report.step, loss=text)

    yield on_chunk, timer
    timer.stop()


def done(text: str) -> None:
  """One line on what was finished."""
  CONSOLE.print(text, highlight=False)


@contextmanager
def hushed() -> Iterator[None]:
  """Nothing is shown within."""
  before, CONSOLE.quiet = CONSOLE.quiet, True
  try:
    yield
  finally:
    CONSOLE.quiet = before
