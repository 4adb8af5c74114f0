import json
import os
import pathlib
from unittest import mock

import numpy as np
from absl.testing import parameterized

from bdjax import data
from bdjax.data import cache


def example(shift=0):
  images = np.arange(2 * 64 * 64 * 3, dtype=np.int64) * 7 + shift
  images = (images % 251).astype(np.uint8).reshape(2, 64, 64, 3)
  return data.Split(images, np.array([1, 0], np.int32))


class CacheTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / 'a' / 'b'
    self.built = 0

  def build(self):
    self.built += 1
    return example()

  def fetch(self):
    return cache.fetch(self.folder, 'train', self.build)

  def assert_whole(self, split):
    np.testing.assert_array_equal(split.images, example().images)
    np.testing.assert_array_equal(split.labels, example().labels)

  def test_a_split_is_built_once_and_memory_mapped(self):
    for _ in range(3):
      split = self.fetch()
      self.assert_whole(split)
      self.assertIsInstance(split.images, np.memmap)
      self.assertFalse(split.images.flags.writeable)
      self.assertEqual(split.labels.dtype, np.int32)
    self.assertEqual(self.built, 1)

  def test_nothing_but_the_three_files_is_left(self):
    self.fetch()
    self.assertCountEqual(
      os.listdir(self.folder),
      ['train.json', 'train_images.npy', 'train_labels.npy'],
    )

  @parameterized.parameters('train_images.npy', 'train_labels.npy')
  def test_a_truncated_file_is_rebuilt(self, name):
    self.fetch()
    path = self.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    self.assert_whole(self.fetch())
    self.assertEqual(self.built, 2)

  @parameterized.parameters(0, 30, 60, 200, 9000, -1)
  def test_a_changed_byte_is_noticed(self, position):
    self.fetch()
    path = self.folder / 'train_images.npy'
    content = bytearray(path.read_bytes())
    content[position] ^= 255
    path.write_bytes(content)
    self.assert_whole(self.fetch())
    self.assertEqual(self.built, 2)

  def test_a_hole_in_a_large_file_is_noticed(self):
    images = np.full((40, 100, 100, 30), 7, np.uint8)
    labels = np.zeros(40, np.int32)
    build = mock.Mock(return_value=data.Split(images, labels))
    cache.fetch(self.folder, 'big', build)
    holed = images.copy()
    holed.reshape(-1)[5_000_000:5_100_000] = 0
    np.save(self.folder / 'big_images.npy', holed)
    split = cache.fetch(self.folder, 'big', build)
    self.assertEqual(build.call_count, 2)
    self.assertTrue(np.all(split.images == 7))

  def test_another_array_of_the_same_size_is_noticed(self):
    self.fetch()
    np.save(self.folder / 'train_images.npy', example(shift=1).images)
    self.assert_whole(self.fetch())
    self.assertEqual(self.built, 2)

  @parameterized.parameters(
    '', '{', '[]', 'null', '{"format": 1}', '{"format": 1, "files": {}}'
  )
  def test_a_foreign_manifest_is_rebuilt(self, text):
    self.fetch()
    (self.folder / 'train.json').write_text(text)
    self.assert_whole(self.fetch())
    self.assertEqual(self.built, 2)

  @parameterized.parameters('json', 'images', 'labels')
  def test_a_missing_file_is_rebuilt(self, which):
    self.fetch()
    end = '.json' if which == 'json' else f'_{which}.npy'
    (self.folder / f'train{end}').unlink()
    self.assert_whole(self.fetch())
    self.assertEqual(self.built, 2)

  def test_an_interrupted_write_leaves_nothing_valid(self):
    self.fetch()
    (self.folder / 'train_images.npy').write_bytes(b'')
    with mock.patch.object(np, 'save', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        self.fetch()
    self.assertEmpty([n for n in os.listdir(self.folder) if n[0] == '.'])
    self.assertFalse((self.folder / 'train.json').exists())
    self.assert_whole(self.fetch())

  def test_the_manifest_says_what_the_files_are(self):
    self.fetch()
    manifest = json.loads((self.folder / 'train.json').read_text())
    images = manifest['files']['images']
    self.assertIn("'descr': '|u1'", images['header'])
    self.assertIn("'shape': (2, 64, 64, 3)", images['header'])
    size = (self.folder / 'train_images.npy').stat().st_size
    self.assertEqual(images['size'], size)

  def test_a_folder_that_cannot_be_written_names_the_setting(self):
    self.folder.parent.mkdir(parents=True)
    self.folder.write_text('a file in the way')
    with self.assertRaisesRegex(OSError, 'BDJAX_CACHE_DIR'):
      self.fetch()
