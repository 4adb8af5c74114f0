"""Crafted assets on disk: found by their recipe, whole or not at all."""

import pathlib

import numpy as np
from absl.testing import parameterized

from bdjax import zoo

RECIPE = {'attack': 'lf', 'hparams': {'peak': 0.2}, 'clean_model': '0' * 16}
ARRAYS = {
  'pattern': np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
  'file': np.float32(0.5),
}


class AssetsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def test_comes_back_as_it_was(self):
    name = zoo.assets.write(self.root, RECIPE, ARRAYS)
    got = zoo.assets.read(self.root, name)
    self.assertEqual(got.keys(), ARRAYS.keys())
    for key, value in ARRAYS.items():
      np.testing.assert_array_equal(got[key], value)
      self.assertEqual(got[key].dtype, value.dtype)
    self.assertEqual(zoo.assets.recipe(self.root, name), RECIPE)

  def test_is_found_by_its_recipe(self):
    name = zoo.assets.name_of(RECIPE)
    self.assertIsNone(zoo.assets.read(self.root, name))
    self.assertEqual(zoo.assets.write(self.root, RECIPE, ARRAYS), name)
    other = RECIPE | {'clean_model': '1' * 16}
    self.assertNotEqual(zoo.assets.name_of(other), name)

  def test_writing_again_replaces(self):
    zoo.assets.write(self.root, RECIPE, ARRAYS)
    name = zoo.assets.write(self.root, RECIPE, {'pattern': np.ones(3)})
    got = zoo.assets.read(self.root, name)
    np.testing.assert_array_equal(got['pattern'], np.ones(3))
    self.assertLen(list((self.root / 'assets').iterdir()), 2)

  def test_is_no_artefact(self):
    zoo.assets.write(self.root, RECIPE, ARRAYS)
    self.assertEmpty(zoo.names(self.root))

  @parameterized.parameters(0.5, 0.9)
  def test_damage_is_told_with_its_cure(self, share):
    name = zoo.assets.write(self.root, RECIPE, ARRAYS)
    path = self.root / 'assets' / f'{name}.npz'
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with self.assertRaisesRegex(zoo.CorruptArtefactError, 'delete it, and it'):
      zoo.assets.read(self.root, name)

  def test_a_failed_write_leaves_nothing_behind(self):
    with self.assertRaisesRegex(TypeError, 'dtype object'):
      zoo.assets.write(self.root, RECIPE, {'x': np.array([None])})
    self.assertIsNone(zoo.assets.read(self.root, zoo.assets.name_of(RECIPE)))
    self.assertEmpty(list((self.root / 'assets').glob('.tmp*')))

  def test_digest_of_an_array(self):
    array = np.arange(6, dtype=np.int32)
    same = zoo.assets.digest_of(np.arange(12, dtype=np.int32)[:6])
    self.assertEqual(zoo.assets.digest_of(array), same)
    others = [array + 1, array.reshape(2, 3), array.astype(np.uint32)]
    digests = {zoo.assets.digest_of(x) for x in others}
    self.assertLen(digests | {same}, 4)
