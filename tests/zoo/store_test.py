import io
import logging
import pathlib
import shutil
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import types
from bdjax.zoo import files, store


class Pair(NamedTuple):
  first: object
  second: object


def _model(num_classes: int = 10) -> types.ModelState:
  kernel = jnp.arange(4 * num_classes, dtype=jnp.float32)
  return types.ModelState(
    params={'head': {'kernel': kernel.reshape(4, num_classes)}},
    batch_stats={'bn': {'mean': jnp.ones((4,))}},
  )


def _largest(path: pathlib.Path) -> pathlib.Path:
  found = [p for p in path.rglob('*') if p.is_file()]
  return max(found, key=lambda p: p.stat().st_size)


class StoreTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.path = tmp_path / 'state'

  def _round_trip(self, value, abstract=None):
    store.save_tree(self.path, value)
    return store.load_tree(self.path, value if abstract is None else abstract)

  @parameterized.named_parameters(
    ('dict', {}),
    ('nested', {'a': {}, 'b': ()}),
    ('model', types.ModelState(params={}, batch_stats={})),
    ('none', Pair(None, [])),
  )
  def test_empty_trees(self, value):
    loaded = self._round_trip(value)
    assert jax.tree.structure(loaded) == jax.tree.structure(value)

  def test_model_state_by_abstract_tree(self):
    loaded = self._round_trip(_model(), jax.eval_shape(_model))
    chex.assert_trees_all_equal(loaded, _model())
    chex.assert_trees_all_equal_dtypes(loaded, _model())
    assert isinstance(loaded, types.ModelState)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(loaded))

  def test_all_kinds_of_leaves(self):
    value = {
      'pair': Pair(jnp.zeros((2, 3), jnp.bfloat16), [jnp.int8(3), (True, 2)]),
      'attack': types.AttackState(
        trigger={'mask': jnp.ones((2, 2), bool)},
        kind=jnp.zeros(5, jnp.int8),
      ),
      'empty': jnp.zeros((0, 3)),
      'a/b': np.arange(3),
      'float': 0.1,
      'numpy_scalar': np.float64(0.1),
      '0': np.array(1.5, np.float16),
    }
    loaded = self._round_trip(value)
    chex.assert_trees_all_equal(loaded, value)
    assert jax.tree.structure(loaded) == jax.tree.structure(value)
    for x, y in zip(
      jax.tree.leaves(loaded), jax.tree.leaves(value), strict=True
    ):
      assert isinstance(x, jax.Array) == isinstance(y, jax.Array)
      assert np.asarray(x).dtype == np.asarray(y).dtype

  def test_bare_array(self):
    np.testing.assert_array_equal(self._round_trip(jnp.arange(3)), range(3))

  @parameterized.parameters('threefry2x32', 'rbg')
  def test_typed_keys_survive(self, impl):
    key = jax.random.key(7, impl=impl)
    value = {'one': key, 'many': jax.random.split(key, 3)}
    loaded = self._round_trip(value, jax.eval_shape(lambda: value))
    assert loaded['one'].dtype == key.dtype
    assert loaded['many'].shape == (3,)
    np.testing.assert_array_equal(
      jax.random.normal(loaded['many'][1], (4,)),
      jax.random.normal(value['many'][1], (4,)),
    )

  def test_other_key_implementation_does_not_fit(self):
    store.save_tree(self.path, {'key': jax.random.key(0)})
    with self.assertRaisesRegex(ValueError, 'key<fry>.*key<rbg>'):
      store.load_tree(self.path, {'key': jax.random.key(0, impl='rbg')})

  def test_mismatch_names_leaf_and_both_shapes(self):
    store.save_tree(self.path, _model(10))
    with self.assertRaisesRegex(
      ValueError,
      r'params/head/kernel` is \(4, 10\) in the checkpoint but \(4, 43\)',
    ):
      store.load_tree(self.path, jax.eval_shape(lambda: _model(43)))

  @parameterized.parameters(
    ({'a': jnp.zeros(2, jnp.int32)}, 'float32 in the checkpoint but int32'),
    ({'a': jnp.zeros(2), 'b': jnp.zeros(2)}, '`b` is in the tree asked for'),
    ({}, '`a` is in the checkpoint only'),
  )
  def test_other_misfits(self, abstract, words):
    store.save_tree(self.path, {'a': jnp.zeros(2)})
    with self.assertRaisesRegex(ValueError, words):
      store.load_tree(self.path, abstract)

  def test_wide_host_numbers_narrow_only_without_loss(self):
    store.save_tree(self.path, {'a': np.array([1, 2])})
    loaded = store.load_tree(self.path, {'a': jnp.zeros(2, jnp.int32)})
    assert loaded['a'].dtype == jnp.int32
    other = self.path.with_name('other')
    store.save_tree(other, {'a': np.array([1, 2**40])})
    with self.assertRaisesRegex(ValueError, 'do not fit int32'):
      store.load_tree(other, {'a': jnp.zeros(2, jnp.int32)})

  def test_truncated_file(self):
    store.save_tree(self.path, {'w': jax.random.normal(jax.random.key(0), 999)})
    largest = _largest(self.path)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with self.assertRaisesRegex(
      files.CorruptArtefactError, '--force'
    ) as raised:
      store.load_tree(self.path, {'w': jnp.zeros(999)})
    assert str(self.path) in str(raised.exception)
    with self.assertRaises(files.CorruptArtefactError):
      store.verify_tree(self.path)

  def test_any_missing_or_emptied_file_is_noticed_or_harmless(self):
    value = {'w': jax.random.normal(jax.random.key(0), (50,))}
    store.save_tree(self.path, value)
    noticed = 0
    names = [p.relative_to(self.path) for p in sorted(self.path.rglob('*'))]
    for number, name in enumerate(names):
      if not (self.path / name).is_file():
        continue
      for action in ('delete', 'empty'):
        copy = self.path.with_name(f'{action}{number}')
        shutil.copytree(self.path, copy)
        (copy / name).unlink()
        if action == 'empty':
          (copy / name).touch()
        try:
          loaded = store.load_tree(copy, value)
          np.testing.assert_array_equal(loaded['w'], value['w'])
        except files.CorruptArtefactError:
          noticed += 1
    assert noticed >= 6

  def test_flipped_bit_is_noticed(self):
    value = {'w': jnp.zeros(4), 'b': jnp.ones(4)}
    store.save_tree(self.path, value)
    metadata = self.path / '_CHECKPOINT_METADATA'
    text = metadata.read_text()
    digest = text[text.index('sha256') + 10 :][:64]
    metadata.write_text(text.replace(digest, digest[::-1]))
    with self.assertRaisesRegex(files.CorruptArtefactError, 'content'):
      store.load_tree(self.path, value)

  def test_missing_folder(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no checkpoint at'):
      store.load_tree(self.path, {})

  def test_never_overwrites(self):
    store.save_tree(self.path, {'a': jnp.zeros(2)})
    with self.assertRaisesRegex(FileExistsError, 'never overwritten'):
      store.save_tree(self.path, {'a': jnp.ones(2)})
    np.testing.assert_array_equal(
      store.load_tree(self.path, {'a': jnp.zeros(2)})['a'], 0
    )

  def test_clashing_names(self):
    with self.assertRaisesRegex(ValueError, 'same path'):
      store.save_tree(self.path, {'a/b': 1, 'a': {'b': 2}})
    with self.assertRaisesRegex(ValueError, 'leaf and a branch'):
      store.save_tree(self.path, {'a/b': 1, 'a': 2})

  def test_text_is_refused(self):
    with self.assertRaisesRegex(TypeError, 'on the card'):
      store.save_tree(self.path, {'a': 'text'})
    assert not self.path.exists()

  def test_content_digest_is_of_the_content(self):
    one = store.save_tree(self.path, _model())
    two = store.save_tree(self.path.with_name('two'), _model())
    other = jax.tree.map(lambda x: x + 1, _model())
    three = store.save_tree(self.path.with_name('three'), other)
    assert one == two == store.verify_tree(self.path) != three

  def test_quiet_and_done_when_it_returns(self):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger('absl')
    level = logger.level
    logger.addHandler(handler)
    try:
      self._round_trip({'one': {}, 'two': jnp.zeros(3)})
      store.verify_tree(self.path)
    finally:
      logger.removeHandler(handler)
    assert not stream.getvalue()
    assert logger.level == level
    assert [p.name for p in self.path.parent.iterdir()] == ['state']

  def test_transfer_guard_bears_it(self):
    value = {'model': _model(), 'key': jax.random.key(3)}
    abstract = jax.eval_shape(lambda: value)
    with jax.transfer_guard('disallow'):
      loaded = self._round_trip(value, abstract)
    chex.assert_trees_all_equal(loaded['model'], value['model'])
