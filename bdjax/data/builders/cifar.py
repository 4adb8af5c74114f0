"""CIFAR-10 and CIFAR-100 as TFDS has them, prepared without TensorFlow.

Same names, version, features and ids as TFDS's own builders, so that
`tfds.builder('cifar10', data_dir=...)` reads the result; examples are in the
order of the original batches, which is torchvision's.

Archives: cifar-10-binary.tar.gz and cifar-100-binary.tar.gz from
https://www.cs.toronto.edu/~kriz/. TFDS compares them with the SHA-256 sums it
ships, downloaded or put into `manual_dir`. An unpacked folder
(cifar-10-batches-bin, cifar-100-binary) in `manual_dir` is taken as it is.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from bdjax.data.builders import archive, base

_HOME = 'https://www.cs.toronto.edu/~kriz/'
_PIXELS = 3 * 32 * 32


class Cifar10(base.Builder, skip_registration=True):
  """CIFAR-10: 50,000 training and 10,000 test images, 32x32, 10 classes."""

  VERSION = tfds.core.Version('3.0.2')
  URL = _HOME + 'cifar-10-binary.tar.gz'
  FOLDER = 'cifar-10-batches-bin'
  FILES = {
    'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
    'test': ('test_batch.bin',),
  }
  LABELS = {'label': 'batches.meta.txt'}

  def _info(self) -> tfds.core.DatasetInfo:
    return self._describe(
      description='CIFAR-10: 60,000 colour images of 32x32 in 10 classes.',
      homepage=_HOME + 'cifar.html',
      labels=tfds.features.ClassLabel(num_classes=10),
      image=tfds.features.Image(shape=(32, 32, 3), encoding_format='png'),
    )

  def _split_generators(self, dl_manager):
    files, prefix = self._locate(dl_manager)
    for key, name in self.LABELS.items():
      self.info.features[key].names = files.read(prefix + name).decode().split()
    return {
      split: self._generate_examples(
        split, self._read(files, [prefix + name for name in names])
      )
      for split, names in self.FILES.items()
    }

  def _locate(self, dl_manager) -> tuple[archive.Files, str]:
    """The files, given by hand or downloaded, and their common prefix."""
    if self.manual is not None:
      folder = self.manual / self.FOLDER
      if folder.is_dir():
        return archive.Files(folder=folder), ''
      name = self.URL.removeprefix(_HOME)
      if not (self.manual / name).is_file():
        raise FileNotFoundError(
          f'{self.manual} has neither {name} nor an unpacked {self.FOLDER}; '
          f'fetch it from {self.URL}.'
        )
    # TFDS looks for the archive in the manual folder first.
    path = pathlib.Path(dl_manager.download(self.URL))
    return archive.Files([path]), self.FOLDER + '/'

  def _read(self, files: archive.Files, names: list[str]) -> Iterator[dict]:
    """Records of label bytes and 3072 pixels, channel by channel."""
    from PIL import Image

    keys = tuple(self.LABELS)
    for name in names:
      raw = np.frombuffer(files.read(name), np.uint8)
      for row in raw.reshape(-1, len(keys) + _PIXELS):
        pixels = row[len(keys) :].reshape(3, 32, 32).transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        labels = (int(label) for label in row[: len(keys)])
        yield dict(zip(keys, labels, strict=True)) | {'image': image}


class Cifar100(Cifar10, skip_registration=True):
  """CIFAR-100: as CIFAR-10, with 100 fine and 20 coarse classes."""

  URL = _HOME + 'cifar-100-binary.tar.gz'
  FOLDER = 'cifar-100-binary'
  FILES = {'train': ('train.bin',), 'test': ('test.bin',)}
  LABELS = {
    'coarse_label': 'coarse_label_names.txt',
    'label': 'fine_label_names.txt',
  }

  def _info(self) -> tfds.core.DatasetInfo:
    return self._describe(
      description='CIFAR-100: 60,000 colour images of 32x32 in 100 classes.',
      homepage=_HOME + 'cifar.html',
      labels=tfds.features.ClassLabel(num_classes=100),
      image=tfds.features.Image(shape=(32, 32, 3), encoding_format='png'),
      coarse_label=tfds.features.ClassLabel(num_classes=20),
    )
