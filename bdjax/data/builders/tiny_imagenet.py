"""Tiny ImageNet (200 classes, 64x64) from its archive.

Official archive: tiny-imagenet-200.zip, Stanford CS231n; the MD5 sum is the
one that other readers of the archive publish. Its test labels are not public,
so `validation` serves as test set.

Order: class folders by name, files in them by name as text (…_1, …_10, …_100,
…_2), as torchvision's ImageFolder has it, in both splits; validation images
are put to their classes by val_annotations.txt, or by their folders where
somebody has sorted them already.
"""

import io
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from bdjax.data.builders import archive, base

_TRAIN = re.compile(r'(?:.*/)?train/(n\d+)/(?:images/)?([^/]+\.JPEG)')
_VAL = re.compile(r'(?:.*/)?val/(?:(n\d+)/)?(?:images/)?([^/]+\.JPEG)')
_VAL_TABLE = re.compile(r'(?:.*/)?val/val_annotations\.txt')


class TinyImagenet(base.Builder, skip_registration=True):
  """Tiny ImageNet: 100,000 training and 10,000 validation images."""

  VERSION = tfds.core.Version('1.0.0')
  URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
  ARCHIVE = archive.Remote(URL, '90528d7ca1a48142e341f4ef8d21d0de')
  NUM_CLASSES = 200
  EVERY = 1  # one class of so many is kept, by name

  def _info(self) -> tfds.core.DatasetInfo:
    return self._describe(
      description=f'{self.NUM_CLASSES} classes of Tiny ImageNet, 64x64.',
      homepage='http://cs231n.stanford.edu/',
      labels=tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
      image=tfds.features.Image(shape=(64, 64, 3), encoding_format='jpeg'),
    )

  def _split_generators(self, dl_manager):
    files = archive.gather(dl_manager, (self.ARCHIVE,), self.manual, 'train/n*')
    train = [m for m in map(_TRAIN.fullmatch, files.names()) if m]
    classes = sorted({m[1] for m in train})[:: self.EVERY]
    if len(classes) != self.NUM_CLASSES:
      raise ValueError(
        f'{self.name} has {self.NUM_CLASSES} classes, but {len(classes)} are '
        'there; is the archive complete?'
      )
    self.info.features['label'].names = classes
    table = _validation_classes(files)
    val = [m for m in map(_VAL.fullmatch, files.names()) if m]
    rows = {
      'train': [(m[1], m[2], m[0]) for m in train],
      'validation': [(m[1] or table[m[2]], m[2], m[0]) for m in val],
    }
    return {
      split: self._generate_examples(
        prefix, _examples(files, rows[split], classes)
      )
      for split, prefix in (('train', 'train'), ('validation', 'val'))
    }


class TinyImagenet10(TinyImagenet, skip_registration=True):
  """Every twentieth class of Tiny ImageNet, for tests and small studies."""

  NUM_CLASSES = 10
  EVERY = 20


def _validation_classes(files: archive.Files) -> dict[str, str]:
  """Class of each validation image by file name."""
  for match in map(_VAL_TABLE.fullmatch, files.names()):
    if match:
      lines = files.read(match[0]).decode().splitlines()
      return dict(line.split('\t')[:2] for line in lines if line)
  return {}


def _examples(
  files: archive.Files, rows: list[tuple[str, str, str]], classes: list[str]
) -> Iterator[dict]:
  """Examples by class and file name; rows are (class, file, path)."""
  number = {c: i for i, c in enumerate(classes)}
  for name, _, path in sorted(rows):
    if name in number:
      yield {'image': _color(files.read(path)), 'label': number[name]}


def _color(encoded: bytes) -> bytes:
  """JPEG bytes as they are; the few gray ones as colored PNG, losslessly."""
  from PIL import Image

  with Image.open(io.BytesIO(encoded)) as image:
    if image.mode == 'RGB':
      return encoded
    out = io.BytesIO()
    image.convert('RGB').save(out, 'PNG')
    return out.getvalue()
