"""The toy world: four classes of 8x8x3 images, made from a fixed seed.

A class is the direction of a striped pattern (vertical, horizontal and the two
diagonals), with random phase, colors, contrast and noise, so no single pixel
tells the class and the whole picture, not its corner, carries it. Gray levels
stay within 40 … 215, which leaves black and white to triggers: a white patch
in the bottom-right corner occurs in no clean image.

Everything is integer arithmetic on a frozen random stream: the arrays are the
same on every machine.
"""

import numpy as np

from bdjax.data import specs, splits

NUM_TRAIN, NUM_TEST = 1024, 512
_DIRECTIONS = np.array([(0, 1), (1, 0), (1, 1), (1, -1)])
_WAVE = np.array([-2, 0, 2, 0])  # period of 4 pixels


def load() -> splits.Dataset:
  """Makes the toy world; takes milliseconds.

  Returns:
    1024 training and 512 test images, classes equally frequent and shuffled.
  """
  return splits.Dataset(
    specs.SPECS['synthetic'], _make(0, NUM_TRAIN), _make(1, NUM_TEST)
  )


def _make(seed: int, num: int) -> splits.Split:
  """`num` images in random class order."""
  random = np.random.RandomState(seed)
  labels = random.permutation(np.arange(num) % 4)
  rows, cols = np.mgrid[:8, :8]
  down, right = _DIRECTIONS[labels].T[:, :, None, None]
  phase = random.randint(4, size=(num, 1, 1))
  stripes = _WAVE[(down * rows + right * cols + phase) % 4][..., None]
  # One sign for all channels: colors vary, but stripes never cancel to gray.
  contrast = random.randint(10, 26, size=(num, 1, 1, 3))
  level = random.randint(100, 156, size=(num, 1, 1, 3))
  noise = random.randint(-10, 11, size=(num, 8, 8, 3))
  images = np.clip(level + contrast * stripes + noise, 40, 215)
  return splits.Split(images.astype(np.uint8), labels.astype(np.int32))
