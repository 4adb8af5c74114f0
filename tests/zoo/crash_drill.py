"""Writers that die: run as a script, prints what was left as JSON.

Children are forked before JAX or Orbax have started a thread, so that dozens
of them cost one import; whatever needs Orbax happens in a child.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np

from bdjax.zoo import artefacts, cards, digest, progress, records

RUN = '0123456789abcdef'
_WRITES = ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.truncate')


def child(work, *arguments) -> int:
  """Forks a child that does some work; exit status 1 if that raises."""
  pid = os.fork()
  if pid:
    return pid
  try:
    work(*arguments)
  except BaseException as error:
    print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)
    os._exit(1)
  os._exit(0)


def status(pid: int) -> int:
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at_random(work, *arguments) -> None:
  """Kills a child some time after it told that it had finished one write."""
  ear, mouth = os.pipe()
  pid = child(work, *arguments, lambda: os.write(mouth, b'.'))
  os.close(mouth)
  os.read(ear, 1)
  time.sleep(random.uniform(0, 0.2))
  os.kill(pid, signal.SIGKILL)
  status(pid)
  os.close(ear)


def die_before(count: int, root: str) -> None:
  """Lets this process vanish before its next-but-`count` change on disk."""
  done = 0

  def step():
    nonlocal done
    done += 1
    if done > count:
      os.kill(os.getpid(), signal.SIGKILL)

  def hook(event, arguments):
    if event in _WRITES or (event == 'open' and arguments[2] & os.O_CREAT):
      if root in str(arguments[0]) or event in ('os.remove', 'os.rmdir'):
        step()

  fsync = os.fsync
  os.fsync = lambda file: (step(), fsync(file))
  sys.addaudithook(hook)


def card(run_id: str, stage: str) -> cards.Card:
  return cards.Card(
    run_id=run_id,
    stage=stage,
    method='drill',
    dataset='toy',
    arch='tiny',
    num_classes=4,
    seed=0,
  )


def write_measured(root: str, value: int, force: bool) -> None:
  artefacts.write(
    root,
    card(RUN, 'connect'),
    arrays={'x': np.full(3, value)},
    config={},
    metrics={'value': value},
    force=force,
  )


def left(root: pathlib.Path) -> int | None:
  """Value of the artefact a reader finds, None if none; it must be whole."""
  if not artefacts.names(root):
    return None
  artefact = artefacts.open(root, RUN)
  artefacts.verify(artefact)
  value = artefacts.load_metrics(artefact)['value']
  assert (artefacts.load_arrays(artefact)['x'] == value).all()
  return value


def one_death_per_step(root: pathlib.Path, force: bool) -> list[int | None]:
  """What is left after a writer died before its 1st, 2nd, … change on disk."""
  found = []
  for count in range(200):
    if force:
      write_measured(str(root), 1, True)

    def work(count=count):
      die_before(count, str(root))
      write_measured(str(root), 2, force)

    code = status(child(work))
    assert code in (0, -signal.SIGKILL), code
    found.append(left(root))
    if code == 0:
      break
    if not force and found[-1] is not None:
      write_measured(str(root), 3, False)  # sweeps; leaves the value alone
      os.rename(root, root.with_name(f'{root.name}-{count}'))
  return found


def write_models(root: str, tell) -> None:
  for number in range(10**6):
    run_id = digest.digest(number % 3)
    state = {'model': {'w': np.full(2000, number), 'b': np.array(number)}}
    artefacts.write(
      root,
      card(run_id, 'attack'),
      state=state,
      config={},
      metrics={'value': number},
      force=True,
    )
    tell()


def check_models(root: str) -> None:
  for name in artefacts.names(root):
    artefact = artefacts.open(root, name)
    artefacts.verify(artefact)
    like = {'model': {'w': np.zeros(2000, int), 'b': np.array(0)}}
    model = artefacts.load_state(artefact, like)['model']
    assert (model['w'] == artefacts.load_metrics(artefact)['value']).all()


def train(root: str, tell) -> None:
  """Counts upwards for ever, going on where it was killed."""
  kept = progress.Progress(root, RUN)
  position = kept.load_position() or {'step': 0}
  total = np.array(0)
  if position['step']:
    total = kept.load({'total': total})['total']
  for step in range(position['step'], 10**6):
    assert total == step * (step - 1) // 2, (total, step)
    total = total + step
    kept.save({'step': step + 1}, {'total': total})
    tell()


def check_progress(root: str) -> None:
  position = progress.Progress(root, RUN).load_position() or {'step': 0}
  pathlib.Path(root, 'steps').open('a').write(f'{position["step"]}\n')


def append_records(path: str, writer: int, count: int, tell=None) -> None:
  for number in range(count):
    run_id = f'{writer}-{number}'
    records.append(path, {'run_id': run_id, 'reason_text': 'x' * 5000})
    if tell:
      tell()


def kill_some(root: pathlib.Path, work, check, times: int) -> list[int]:
  """Kills a writer at random moments; check statuses, 0 = all was whole."""
  codes = []
  for _ in range(times):
    kill_at_random(work, str(root))
    codes.append(status(child(check, str(root))))
  return codes


def main(folder: str) -> None:
  root = pathlib.Path(folder)
  report = {
    'digest': digest.digest({'norm': 'linf', 'eps': 0.1}),
    'fresh': one_death_per_step(root / 'fresh', force=False),
    'force': one_death_per_step(root / 'force', force=True),
    'models': kill_some(root / 'models', write_models, check_models, 4),
    'training': kill_some(root / 'training', train, check_progress, 4),
  }
  path = str(root / 'records.jsonl')
  writers = [child(append_records, path, i, 30) for i in range(3)]
  kill_at_random(append_records, path, 9, 10**6)
  report['appenders'] = [status(pid) for pid in writers]
  print(json.dumps(report))


if __name__ == '__main__':
  main(sys.argv[1])
