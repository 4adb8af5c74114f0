import os
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest
from absl.testing import parameterized

from bdjax import types
from bdjax.zoo import artefacts, files, progress


def _tree(value: float) -> dict:
  return {
    'carry': types.ModelState(
      params={'w': jnp.full(3, value, jnp.float32)}, batch_stats={}
    ),
    'key': jax.random.key(3),
    'metrics': {'loss': jnp.full((int(value), 2), value, float)},
  }


def _numbers(tree) -> list:
  return jax.tree.leaves(jax.tree.map(lambda x: x.tolist(), tree['metrics']))


class ProgressTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.root = tmp_path
    self.folder = tmp_path / '.progress' / 'abcd'
    self.progress = progress.Progress(tmp_path, 'abcd')

  def _save(self, *steps: int):
    for step in steps:
      self.progress.save({'phase': 1, 'step': step}, _tree(step))

  def _load(self) -> float:
    """What a restarted process sees."""
    fresh = progress.Progress(self.root, 'abcd')
    position = fresh.load_position()
    if position is None:
      return 0
    loaded = fresh.load(jax.eval_shape(lambda: _tree(position['step'])))
    assert float(loaded['carry'].params['w'][0]) == position['step']
    return position['step']

  def test_from_scratch(self):
    assert self.progress.load_position() is None
    with self.assertRaisesRegex(FileNotFoundError, 'from scratch'):
      self.progress.load(_tree(1.0))
    assert not list(self.root.iterdir())

  def test_newest_wins_and_two_are_kept(self):
    self._save(1, 2, 3)
    position = self.progress.load_position()
    assert position == {'phase': 1, 'step': 3}
    loaded = self.progress.load(jax.eval_shape(lambda: _tree(3.0)))
    chex.assert_trees_all_equal(loaded['carry'], _tree(3.0)['carry'])
    assert loaded['key'].dtype == jax.random.key(0).dtype
    assert len(os.listdir(self.folder)) == 2

  def test_saving_goes_on_after_a_restart(self):
    self._save(1, 2)
    assert self._load() == 2
    self.progress = progress.Progress(self.root, 'abcd')
    self._save(3)
    assert self._load() == 3
    assert len(os.listdir(self.folder)) == 2

  def test_load_without_position(self):
    self._save(1)
    loaded = progress.Progress(self.root, 'abcd').load(_tree(1.0))
    assert _numbers(loaded) == [1.0, 1.0]

  @parameterized.parameters('position.json', 'tree/_CHECKPOINT_METADATA')
  def test_damaged_newest_falls_back(self, part):
    self._save(1, 2)
    newest = sorted(self.folder.iterdir())[-1]
    (newest / part).write_bytes(b'{')
    assert self._load() == 1
    self._save(3)
    assert self._load() == 3

  def test_both_damaged_means_from_scratch(self):
    self._save(1, 2)
    for snapshot in self.folder.iterdir():
      shutil.rmtree(snapshot / 'tree')
    assert self._load() == 0

  def test_failed_save_keeps_the_one_before(self):
    self._save(1)
    with self.assertRaises(TypeError):
      self.progress.save({'step': 2}, {'a': 'text'})
    assert self._load() == 1
    assert os.listdir(self.folder) == ['00000000']

  def test_leftovers_are_ignored_and_swept(self):
    self._save(1)
    snapshot = self.folder / '00000000'
    _, host, _, nonce = files.sibling(snapshot).name.rsplit('-', 3)
    leftover = self.folder / f'.tmp-00000001-{host}-{2**22 + 1}-{nonce}'
    shutil.copytree(snapshot, leftover)
    assert self._load() == 1
    self._save(2)
    assert sorted(os.listdir(self.folder)) == ['00000000', '00000001']

  def test_other_shape_is_named(self):
    self._save(1)
    with self.assertRaisesRegex(ValueError, r'carry/params/w` is \(3,\)'):
      self.progress.load(
        _tree(1.0)
        | {'carry': types.ModelState(params={'w': jnp.ones(4)}, batch_stats={})}
      )

  def test_clear(self):
    self._save(1, 2)
    self.progress.clear()
    assert self.progress.load_position() is None
    assert not self.folder.exists()
    self.progress.clear()
    self._save(1)
    assert self._load() == 1

  def test_hidden_from_queries_and_apart_from_other_runs(self):
    self._save(1)
    assert artefacts.names(self.root) == []
    other = progress.Progress(self.root, 'efgh')
    assert other.load_position() is None
    other.clear()
    assert self._load() == 1
