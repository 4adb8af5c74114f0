"""Nothing half-written is ever seen, wherever a writer is killed."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl.testing import parameterized

from bdjax.zoo import artefacts, records


@pytest.fixture(scope='module')
def drill(tmp_path_factory):
  """Runs the drill once; its report and the folder it worked in."""
  root = tmp_path_factory.mktemp('drill')
  script = pathlib.Path(__file__).with_name('crash_drill.py')
  done = subprocess.run(
    [sys.executable, str(script), str(root)],
    env=os.environ | {'PYTHONHASHSEED': '7', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout), root, done.stderr


class CrashTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _drill(self, drill):
    self.report, self.root, self.errors = drill

  def test_fresh_artefacts_appear_at_once(self):
    """Killed before any change on disk: nothing, or all of it."""
    found = self.report['fresh']
    assert len(found) > 20
    assert set(found) == {None, 2}
    assert found == sorted(found, key=lambda x: x or 0)  # nothing, then all

  def test_forced_replacement_is_never_a_mixture(self):
    found = self.report['force']
    assert found[0] == 1
    assert found[-1] == 2
    # Without an artefact only between the two renames.
    assert found.count(None) <= 2
    order = [{1: 0, None: 1, 2: 2}[value] for value in found]
    assert order == sorted(order)

  def test_leftovers_are_cleaned_by_the_next_writer(self):
    names = os.listdir(self.root / 'force/measured/connect')
    assert names == ['0123456789abcdef']

  def test_killed_model_writers_leave_whole_models(self):
    assert self.report['models'] == [0] * 4, self.errors
    assert artefacts.names(self.root / 'models')

  def test_killed_training_goes_on(self):
    assert self.report['training'] == [0] * 4, self.errors
    text = (self.root / 'training/steps').read_text()
    steps = [int(line) for line in text.splitlines()]
    assert steps == sorted(set(steps))  # each life got further

  def test_concurrent_appenders_and_one_that_is_killed(self):
    assert self.report['appenders'] == [0] * 3, self.errors
    found = records.scan(self.root / 'records.jsonl')
    ids = [entry['run_id'] for entry in found.records]
    assert len(ids) == len(set(ids))
    expected = {f'{w}-{n}' for w in range(3) for n in range(30)}
    assert expected <= set(ids)

  def test_digests_do_not_depend_on_the_process(self):
    assert self.report['digest'] == '7246a91bd699ef24'
