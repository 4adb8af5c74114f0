"""Prepared real data sets, read from the folder that $BDJAX_DATA_DIR names."""

import pathlib
import time
from unittest import mock

import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import data
from bdjax.data import places, tfds_source


class RealDataTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.cache = pathlib.Path(self.create_tempdir().full_path)

  def folder(self, name):
    folder = tfds_source.find(name, places.data_root())
    if folder is None:
      self.skipTest(f'{name} is not in {places.data_root()}')
    return folder

  @pytest.mark.data
  def test_ten_classes_of_tiny_imagenet(self):
    self.folder('tiny_imagenet10')
    dataset = data.load('tiny_imagenet10', cache_dir=self.cache)
    self.assertEqual(dataset.train.images.shape, (5000, 64, 64, 3))
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), 500)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), 50)
    self.assertGreater(dataset.train.images.std(), 30)

  @pytest.mark.data
  @parameterized.parameters('cifar10', 'gtsrb')
  def test_a_test_split_has_the_classes_of_its_spec(self, name):
    spec = data.spec(name)
    split = tfds_source.read_split(self.folder(name), 'test', spec, self.cache)
    self.assertEqual(split.images.shape[1:], spec.image_shape)
    self.assertLen(np.unique(split.labels), spec.num_classes)
    # Neighbouring pixels of photographs resemble each other.
    step = np.diff(split.images[:500].astype(int), axis=2)
    self.assertLess(np.abs(step).mean(), split.images[:500].std() / 2)

  @pytest.mark.data
  @pytest.mark.slow
  def test_cifar10_opens_at_once_when_cached(self):
    self.folder('cifar10')
    first = data.load('cifar10', cache_dir=self.cache)
    self.assertEqual(first.train.images.shape, (50_000, 32, 32, 3))
    np.testing.assert_array_equal(np.bincount(first.train.labels), 5000)
    np.testing.assert_allclose(
      first.train.images[::10].mean((0, 1, 2)) / 255,
      first.spec.mean,
      atol=0.01,
    )
    start = time.perf_counter()
    with mock.patch.object(
      tfds_source, '_decode_split', side_effect=AssertionError
    ):
      second = data.load('cifar10', cache_dir=self.cache)
    self.assertLess(time.perf_counter() - start, 1)
    np.testing.assert_array_equal(first.test.images, second.test.images)
