import json
import os
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import types
from bdjax.zoo import artefacts, cards, files, store


def _card(run_id: str = '0123456789abcdef', **changes) -> cards.Card:
  facts = dict(
    run_id=run_id,
    stage='attack',
    method='badnets',
    dataset='toy',
    arch='tiny',
    num_classes=4,
    seed=0,
  )
  return cards.Card(**facts | changes)


def _state(value: float = 1.0) -> dict:
  return {
    'model': types.ModelState(
      params={'head': {'kernel': jnp.full((3, 4), value)}}, batch_stats={}
    ),
    'attack': types.AttackState(
      trigger={'mask': jnp.ones((2, 2))}, kind=jnp.zeros(6, jnp.int8)
    ),
  }


class ArtefactTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.root = tmp_path

  def _write(self, value: float = 1.0, **options) -> artefacts.Artefact:
    given = dict(
      state=_state(value), config={'lr': 0.1}, metrics={'asr': value}
    )
    return artefacts.write(self.root, _card(), **given | options)

  def test_layout(self):
    artefact = self._write()
    path = self.root / 'attacked/toy/tiny/0123456789abcdef'
    assert artefact.path == path
    assert sorted(os.listdir(path)) == [
      'DONE',
      'card.json',
      'config.json',
      'metrics.json',
      'state',
    ]
    assert sorted(os.listdir(path / 'state')) == ['attack', 'model']
    assert os.listdir(path.parent) == ['0123456789abcdef']

  def test_round_trip(self):
    written = self._write(arrays={'curves/loss': jnp.arange(3.0)})
    artefact = artefacts.open(self.root, '0123456789abcdef')
    assert artefact == written
    assert artefact.card.state == ('model', 'attack')
    assert artefact.name in artefacts.names(self.root)
    loaded = artefacts.load_state(artefact, jax.eval_shape(_state))
    chex.assert_trees_all_equal(loaded, _state())
    assert artefacts.load_config(artefact) == {'lr': 0.1}
    assert artefacts.load_metrics(artefact) == {'asr': 1.0}
    np.testing.assert_array_equal(
      artefacts.load_arrays(artefact)['curves/loss'], [0, 1, 2]
    )
    artefacts.verify(artefact)

  def test_one_tree_of_several(self):
    model = {'model': jax.eval_shape(_state)['model']}
    loaded = artefacts.load_state(self._write(), model)
    assert list(loaded) == ['model']
    with self.assertRaisesRegex(KeyError, 'Known: attack, model'):
      artefacts.load_state(self._write(), {'extra': {}})

  def test_mismatch_names_folder_leaf_and_both_shapes(self):
    other = {
      'model': types.ModelState(
        params={'head': {'kernel': jnp.zeros((3, 43))}}, batch_stats={}
      )
    }
    with self.assertRaisesRegex(
      ValueError,
      r'0123456789abcdef/state/model: `params/head/kernel` is \(3, 4\) in the '
      r'checkpoint but \(3, 43\).*card',
    ):
      artefacts.load_state(self._write(), other)

  def test_measured_has_arrays_only(self):
    card = _card(stage='existence')
    arrays = {'file': np.eye(2), 'tac/a': np.zeros(0), 'mask': np.array(True)}
    artefact = artefacts.write(
      self.root, card, arrays=arrays, config={}, metrics={'bec': np.nan}
    )
    assert artefact.path == self.root / 'measured/existence/0123456789abcdef'
    chex.assert_trees_all_equal(artefacts.load_arrays(artefact), arrays)
    assert artefacts.load_metrics(artefact) == {'bec': None}
    with self.assertRaisesRegex(ValueError, 'no state'):
      artefacts.write(self.root, card, state=_state(), config={}, metrics={})

  def test_model_needs_state(self):
    with self.assertRaisesRegex(ValueError, "state={'model'"):
      artefacts.write(self.root, _card(), config={}, metrics={})

  def test_arrays_numpy_cannot_hold(self):
    with self.assertRaisesRegex(TypeError, 'float32 first'):
      self._write(arrays={'a': jnp.zeros(3, jnp.bfloat16)})
    assert artefacts.names(self.root) == []
    assert not list(self.root.glob('**/.tmp-*'))

  def test_equal_content_gives_equal_files(self):
    one = self._write(arrays={'a': np.arange(3)})
    two = self._write(arrays={'a': np.arange(3)}, force=True)
    assert one.content == two.content

  def test_complete_artefacts_stay_untouched(self):
    before = self._write()
    inode = before.path.stat().st_ino
    assert self._write(2.0) == before
    assert before.path.stat().st_ino == inode
    assert artefacts.load_metrics(before) == {'asr': 1.0}

  def test_force_replaces(self):
    before = self._write()
    after = self._write(2.0, force=True)
    assert artefacts.load_metrics(after) == {'asr': 2.0}
    loaded = artefacts.load_state(after, _state())
    chex.assert_trees_all_equal(loaded, _state(2.0))
    assert os.listdir(before.path.parent) == ['0123456789abcdef']

  def test_failed_force_keeps_the_old_one(self):
    before = self._write()
    with self.assertRaises(TypeError):
      self._write(2.0, force=True, config=len)
    artefacts.verify(before)
    assert os.listdir(before.path.parent) == ['0123456789abcdef']

  def test_without_done_it_does_not_exist(self):
    artefact = self._write()
    assert artefacts.exists(self.root, '0123456789abcdef')
    (artefact.path / 'DONE').unlink()
    assert not artefacts.exists(self.root, '0123456789abcdef')
    assert artefacts.names(self.root) == []
    with self.assertRaisesRegex(FileNotFoundError, 'no complete artefact'):
      artefacts.open(self.root, '0123456789abcdef')
    assert artefacts.load_metrics(self._write(3.0)) == {'asr': 3.0}

  def test_open_suggests(self):
    self._write()
    with self.assertRaisesRegex(
      FileNotFoundError, "Did you mean '0123456789abcdef'"
    ):
      artefacts.open(self.root, '0123456789abcdee')

  @parameterized.parameters(
    'card.json', 'config.json', 'metrics.json', 'arrays/arrays.npz'
  )
  def test_damaged_files_are_named(self, part):
    artefact = self._write(arrays={'a': np.arange(3)})
    path = artefact.path / part
    path.write_bytes(path.read_bytes()[:-9])
    with self.assertRaisesRegex(
      files.CorruptArtefactError, f'0123456789abcdef.*`{part}`.*--force'
    ):
      artefacts.verify(artefact)
    path.unlink()
    with self.assertRaisesRegex(files.CorruptArtefactError, 'missing'):
      artefacts.verify(artefact)

  def test_damaged_state_is_named(self):
    artefact = self._write()
    shutil.rmtree(artefact.path / 'state/model')
    with self.assertRaisesRegex(files.CorruptArtefactError, 'state/model'):
      artefacts.verify(artefact)
    other = jax.tree.map(lambda x: x + 1, _state()['model'])
    store.save_tree(artefact.path / 'state/model', other)
    with self.assertRaisesRegex(files.CorruptArtefactError, 'state/model'):
      artefacts.verify(artefact)

  def test_damaged_done(self):
    artefact = self._write()
    (artefact.path / 'DONE').write_text('')
    with self.assertRaisesRegex(files.CorruptArtefactError, 'DONE'):
      artefacts.open(self.root, '0123456789abcdef')

  def test_leftovers_of_the_dead_are_removed_and_the_living_spared(self):
    target = self.root / _card().name
    target.parent.mkdir(parents=True)
    mine = files.sibling(target)
    dead = _rename_owner(mine, pid=2**22 + 1)  # above Linux's largest pid
    foreign = _rename_owner(mine, host='f' * 8)
    stale = _rename_owner(mine, host='e' * 8)
    unrelated = _rename_owner(mine.with_name(f'{mine.name}'), pid=2**22 + 1)
    unrelated = unrelated.with_name(
      unrelated.name.replace('0123456789abcdef', 'aaaaaaaaaaaaaaaa')
    )
    for path in (mine, dead, foreign, stale, unrelated):
      path.mkdir()
    os.utime(stale, (0, 0))
    self._write()
    left = {p.name for p in target.parent.iterdir()}
    assert left == {target.name, mine.name, foreign.name, unrelated.name}
    assert artefacts.names(self.root) == [_card().name]

  def test_two_writers_of_one_run(self):
    """The first to finish wins, the second drops its copy."""
    target = self.root / _card().name
    fill, inner = artefacts._fill, []

    def slow(*arguments):
      fill(*arguments)
      if not inner:
        inner.append(True)
        self._write(2.0)

    artefacts._fill = slow
    try:
      artefact = self._write(1.0)
    finally:
      artefacts._fill = fill
    assert artefacts.load_metrics(artefact) == {'asr': 2.0}
    assert os.listdir(target.parent) == [target.name]

  def test_readable_json(self):
    text = (self._write().path / 'card.json').read_text()
    assert json.loads(text)['method'] == 'badnets'
    assert text.startswith('{\n  "run_id"')


def _rename_owner(
  path: pathlib.Path, host: str | None = None, pid: int | None = None
) -> pathlib.Path:
  head, old_host, old_pid, nonce = path.name.rsplit('-', 3)
  return path.with_name(f'{head}-{host or old_host}-{pid or old_pid}-{nonce}')
