import os
import pathlib
from unittest import mock

from absl.testing import parameterized

from bdjax import data, registry
from bdjax.data import places


class CatalogTest(parameterized.TestCase):
  @parameterized.parameters(*data.REGISTRY)
  def test_specs_are_complete(self, name):
    if name == 'arrays':
      with self.assertRaisesRegex(ValueError, r"load\('arrays', data_dir"):
        data.spec(name)
      return
    spec = data.spec(name)
    self.assertEqual(spec.name, name)
    self.assertLen(spec.mean, spec.image_shape[2])
    self.assertLen(spec.std, spec.image_shape[2])
    self.assertGreater(min(spec.std), 0)
    hash(spec)

  @parameterized.parameters(
    ('cifar10', 10, 32, 4, True),
    ('cifar100', 100, 32, 4, False),
    ('gtsrb', 43, 32, 4, False),
    ('tiny_imagenet', 200, 64, 4, False),
  )
  def test_the_benchmarks_recipe(self, name, classes, side, padding, flip):
    spec = data.spec(name)
    self.assertEqual(spec.num_classes, classes)
    self.assertEqual(spec.image_shape, (side, side, 3))
    self.assertEqual((spec.crop_padding, spec.flip), (padding, flip))

  @parameterized.parameters(data.load, data.spec)
  def test_an_unknown_name_gets_a_suggestion(self, fun):
    with self.assertRaisesRegex(registry.UnknownName, "mean 'cifar10'"):
      fun('cifar-10')

  def test_a_missing_data_set_names_the_command(self):
    root = self.create_tempdir().full_path
    with self.assertRaises(data.MissingDataError) as caught:
      data.load('gtsrb', data_dir=root)
    self.assertIn(
      f'python -m launch.prepare_data --dataset=gtsrb --data_dir={root}\n',
      str(caught.exception),
    )
    self.assertIsInstance(caught.exception, FileNotFoundError)

  def test_sizes_can_be_reduced(self):
    dataset = data.load('synthetic', num_train=40, num_test=8)
    self.assertLen(dataset.train.labels, 40)
    self.assertLen(dataset.test.labels, 8)
    with self.assertRaisesRegex(ValueError, '`num_train=1025`'):
      data.load('synthetic', num_train=1025)


class PlacesTest(parameterized.TestCase):
  def roots(self, **environment):
    with mock.patch.dict(os.environ, environment, clear=True):
      os.environ['HOME'] = '/h'
      return str(places.data_root()), str(places.cache_root())

  def test_the_environment_is_asked_in_order(self):
    self.assertEqual(
      self.roots(), ('/h/tensorflow_datasets', '/h/.cache/bdjax')
    )
    self.assertEqual(self.roots(TFDS_DATA_DIR='/t')[0], '/t')
    both = self.roots(TFDS_DATA_DIR='/t', BDJAX_DATA_DIR='/b')
    self.assertEqual(both[0], '/b')
    self.assertEqual(self.roots(BDJAX_CACHE_DIR='~/c')[1], '/h/c')

  def test_an_argument_goes_first(self):
    with mock.patch.dict(os.environ, BDJAX_DATA_DIR='/b', BDJAX_CACHE_DIR='/b'):
      self.assertEqual(places.data_root('/a'), pathlib.Path('/a'))
      self.assertEqual(places.cache_root('/a'), pathlib.Path('/a'))
