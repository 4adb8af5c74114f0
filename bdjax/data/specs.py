"""Static facts of the data sets: shape, classes, normalization, augmentation.

Means and deviations are those of BackdoorBench, so that published figures can
be compared; its attacks flip CIFAR-10 only. GTSRB stays in plain [0, 1]
(mean 0, deviation 1) for the same reason.

Digits and the toy world never flip, since a mirrored 2 is no digit and a
mirrored diagonal is another class. Their crop moves an image by about half a
pixel of the 8x8 original: 2 px at 32x32, 1 px at 16x16 and in the toy world.
More would push strokes out of the picture, as digits reach its rim.
"""

from bdjax import types

_IMAGENET_64 = dict(
  image_shape=(64, 64, 3),
  mean=(0.4802, 0.4481, 0.3975),
  std=(0.2302, 0.2265, 0.2262),
  crop_padding=4,
)
_DIGITS = dict(num_classes=10, mean=(0.305,) * 3)

SPECS: dict[str, types.DataSpec] = {
  spec.name: spec
  for spec in (
    types.DataSpec(
      name='synthetic',
      image_shape=(8, 8, 3),
      num_classes=4,
      mean=(0.5, 0.5, 0.5),
      std=(0.12, 0.12, 0.12),
      crop_padding=1,
    ),
    types.DataSpec(
      name='digits16',
      image_shape=(16, 16, 3),
      std=(0.32, 0.32, 0.32),
      crop_padding=1,
      **_DIGITS,
    ),
    types.DataSpec(
      name='digits32',
      image_shape=(32, 32, 3),
      std=(0.33, 0.33, 0.33),
      crop_padding=2,
      **_DIGITS,
    ),
    types.DataSpec(
      name='cifar10',
      image_shape=(32, 32, 3),
      num_classes=10,
      mean=(0.4914, 0.4822, 0.4465),
      std=(0.247, 0.243, 0.261),
      crop_padding=4,
      flip=True,
    ),
    types.DataSpec(
      name='cifar100',
      image_shape=(32, 32, 3),
      num_classes=100,
      mean=(0.5071, 0.4865, 0.4409),
      std=(0.2673, 0.2564, 0.2762),
      crop_padding=4,
    ),
    types.DataSpec(
      name='gtsrb',
      image_shape=(32, 32, 3),
      num_classes=43,
      mean=(0.0, 0.0, 0.0),
      std=(1.0, 1.0, 1.0),
      crop_padding=4,
    ),
    types.DataSpec(name='tiny_imagenet', num_classes=200, **_IMAGENET_64),
    types.DataSpec(name='tiny_imagenet10', num_classes=10, **_IMAGENET_64),
  )
}
