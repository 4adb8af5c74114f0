import json
import pathlib

import numpy as np
from absl.testing import parameterized

from bdjax import data
from bdjax.data import arrays


def example(num=12, shape=(8, 8, 3), classes=4, seed=0):
  random = np.random.default_rng(seed)
  images = random.integers(0, 256, (num, *shape), dtype=np.uint8)
  return images, np.arange(num) % classes


class ArraysTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def write(self, stem='', test='test', **replaced):
    found = {}
    for seed, split in enumerate(('train', test)):
      found[f'{split}_images'], found[f'{split}_labels'] = example(seed=seed)
    for key, array in (found | replaced).items():
      if array is not None:
        np.save(self.root / f'{stem}{key}.npy', array)

  def load(self, name='arrays', **kwargs):
    return data.load(name, data_dir=self.root, **kwargs)

  @parameterized.parameters('', 'arrays_')
  def test_a_folder_of_ones_own(self, stem):
    self.write(stem)
    dataset = self.load()
    np.testing.assert_array_equal(dataset.train.images, example()[0])
    np.testing.assert_array_equal(dataset.test.images, example(seed=1)[0])
    self.assertIsInstance(dataset.train.images, np.memmap)
    self.assertEqual(dataset.train.labels.dtype, np.int32)

  def test_facts_come_from_the_arrays(self):
    self.write()
    spec, images = self.load().spec, example()[0] / 255
    self.assertEqual(
      (spec.name, spec.image_shape, spec.num_classes), ('arrays', (8, 8, 3), 4)
    )
    self.assertEqual((spec.crop_padding, spec.flip), (0, False))
    np.testing.assert_allclose(spec.mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(spec.std, images.std((0, 1, 2)), rtol=1e-12)

  def test_the_spec_file_wins(self):
    self.write()
    given = {'num_classes': 9, 'mean': [0, 0, 0], 'std': [1, 1, 1]}
    (self.root / 'spec.json').write_text(json.dumps(given | {'flip': True}))
    spec = self.load().spec
    self.assertEqual((spec.num_classes, spec.flip), (9, True))
    self.assertEqual((spec.mean, spec.std), ((0, 0, 0), (1, 1, 1)))
    (self.root / 'spec.json').write_text('{"classes": 9}')
    with self.assertRaisesRegex(ValueError, "'classes'.*num_classes"):
      self.load()

  def test_too_few_classes_in_the_spec_file_are_noticed(self):
    self.write()
    (self.root / 'spec.json').write_text('{"num_classes": 3}')
    with self.assertRaisesRegex(ValueError, 'labels run from 0 to 3'):
      self.load()

  def test_one_archive(self):
    found = dict(
      zip(
        ('train_images', 'train_labels', 'test_images', 'test_labels'),
        (*example(), *example(seed=1)),
        strict=True,
      )
    )
    np.savez(self.root / 'arrays.npz', **found)
    for root in (self.root, self.root / 'arrays.npz'):
      dataset = data.load('arrays', data_dir=root)
      np.testing.assert_array_equal(dataset.test.images, found['test_images'])

  @parameterized.parameters('test', 'validation', 'val')
  def test_a_known_data_set_as_arrays(self, test):
    found = {}
    for seed, split in enumerate(('train', test)):
      images, labels = example(shape=(64, 64, 3), classes=10, seed=seed)
      found |= {f'{split}_images': images, f'{split}_labels': labels}
    for key, array in found.items():
      np.save(self.root / f'tiny_imagenet10_{key}.npy', array)
    dataset = self.load('tiny_imagenet10')
    self.assertEqual(dataset.spec, data.spec('tiny_imagenet10'))
    np.testing.assert_array_equal(dataset.test.labels, found[f'{test}_labels'])
    self.assertLen(self.load('tiny_imagenet10', num_test=5).test.labels, 5)

  def test_a_known_data_set_must_have_its_shape(self):
    self.write('cifar10_')
    with self.assertRaisesRegex(ValueError, r'\(8, 8, 3\) but cifar10 is'):
      self.load('cifar10')

  @parameterized.parameters('train_labels', 'test_images')
  def test_a_missing_part_is_named(self, key):
    self.write(**{key: None})
    with self.assertRaisesRegex(FileNotFoundError, f"'{key}' is missing"):
      self.load()

  @parameterized.parameters(
    (dict(train_images=np.zeros((12, 8, 8, 3))), TypeError, 'np.round'),
    (dict(test_labels=np.arange(11)), ValueError, '12 images'),
    (dict(test_images=np.zeros((12, 9, 9, 3), np.uint8)), ValueError, '9, 9'),
  )
  def test_faults_come_with_a_cure(self, replaced, error, cure):
    self.write(**replaced)
    with self.assertRaises(error) as caught:
      self.load()
    self.assertIn(cure, str(caught.exception))

  def test_an_empty_folder_says_what_is_wanted(self):
    with self.assertRaisesRegex(data.MissingDataError, 'train_images.npy'):
      self.load()

  def test_moments_of_a_constant_channel_can_be_divided_by(self):
    images = np.zeros((2500, 2, 2, 2), np.uint8)
    images[::2, ..., 0] = 255
    mean, std = arrays.moments(images)
    np.testing.assert_allclose(mean, (0.5, 0))
    np.testing.assert_allclose(std, (0.5, 1))
