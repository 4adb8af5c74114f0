import numpy as np
from absl.testing import parameterized
from sklearn import datasets

from bdjax import data


class DigitsTest(parameterized.TestCase):
  @parameterized.parameters(16, 32)
  def test_shapes_and_balance(self, side):
    dataset = data.load(f'digits{side}')
    self.assertEqual(dataset.train.images.shape, (1437, side, side, 3))
    self.assertEqual(dataset.test.images.shape, (360, side, side, 3))
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), 36)
    counts = np.bincount(dataset.train.labels)
    self.assertBetween(counts.min(), 138, 147)
    self.assertBetween(counts.max(), 138, 147)

  def test_both_sizes_hold_the_same_digits_in_the_same_order(self):
    small, large = data.load('digits16'), data.load('digits32')
    for a, b in zip(small[1:], large[1:], strict=True):
      np.testing.assert_array_equal(a.labels, b.labels)
      halved = b.images.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
      self.assertLess(np.abs(halved - a.images).mean(), 8)

  def test_every_original_is_used_once(self):
    labels = datasets.load_digits().target
    dataset = data.load('digits16')
    used = np.concatenate([dataset.train.labels, dataset.test.labels])
    np.testing.assert_array_equal(np.bincount(used), np.bincount(labels))
    train, test = (
      {image.tobytes() for image in split.images} for split in dataset[1:]
    )
    self.assertEmpty(train & test)

  def test_enlarging_keeps_the_gray_levels(self):
    raw = datasets.load_digits().images / 16
    images = np.concatenate([s.images for s in data.load('digits32')[1:]])
    self.assertEqual(images.max(), 255)
    self.assertAlmostEqual(images.mean() / 255, raw.mean(), delta=0.01)
    np.testing.assert_array_equal(images[..., 0], images[..., 2])

  @parameterized.parameters('digits16', 'digits32')
  def test_the_spec_is_that_of_the_images(self, name):
    dataset = data.load(name)
    images = dataset.train.images / 255
    self.assertAlmostEqual(images.mean(), dataset.spec.mean[0], delta=0.01)
    self.assertAlmostEqual(images.std(), dataset.spec.std[0], delta=0.01)
    self.assertFalse(dataset.spec.flip)
