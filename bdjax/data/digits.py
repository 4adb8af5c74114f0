"""Real digits that come with scikit-learn: no download, 1797 images.

The 8x8 gray images (17 levels) of the UCI optical digits test set, enlarged
bilinearly and repeated over three channels, so that networks and triggers for
colored 16x16 or 32x32 images run on real data anywhere.

Split: 36 images of each class (360) are the test set, drawn once and for all;
the other 1437 (138 to 147 per class) are the training set. Writers are not
told apart, so the same hand may occur in both.
"""

import numpy as np

from bdjax.data import specs, splits

TEST_PER_CLASS = 36


def load(name: str) -> splits.Dataset:
  """Loads the digits at the size that the name says.

  Args:
    name: 'digits16' or 'digits32'.

  Returns:
    The data set, its examples in scikit-learn's order.
  """
  from sklearn import datasets

  spec = specs.SPECS[name]
  flat, target = datasets.load_digits(return_X_y=True)
  images = _enlarge(np.reshape(flat, (-1, 8, 8)), spec.image_shape[0])
  labels = np.asarray(target, np.int32)
  is_test = _test_mask(labels)
  train = splits.Split(images[~is_test], labels[~is_test])
  return splits.Dataset(
    spec, train, splits.Split(images[is_test], labels[is_test])
  )


def _enlarge(images: np.ndarray, side: int) -> np.ndarray:
  """Gray levels 0 … 16 [N, 8, 8] as bytes [N, side, side, 3]."""
  from PIL import Image

  out = np.empty((len(images), side, side, 3), np.uint8)
  for i, image in enumerate(np.round(images * 255 / 16).astype(np.uint8)):
    large = Image.fromarray(image).resize(
      (side, side), Image.Resampling.BILINEAR
    )
    out[i] = np.asarray(large)[..., None]
  return out


def _test_mask(labels: np.ndarray) -> np.ndarray:
  """Which examples are held out: a fixed draw of each class."""
  random = np.random.RandomState(0)
  mask = np.zeros(len(labels), bool)
  for c in range(10):
    mask[random.permutation(np.flatnonzero(labels == c))[:TEST_PER_CLASS]] = (
      True
    )
  return mask
