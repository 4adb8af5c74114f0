"""GTSRB, the German Traffic Sign Recognition Benchmark, from its archives.

Official archives (INI, Ruhr-Universität Bochum): GTSRB_Final_Training_Images,
GTSRB_Final_Test_Images and GTSRB_Final_Test_GT, all .zip; 39,209 and 12,630
images. URLs and MD5 sums are those that other readers of the same archives
publish; the training archive is the 'Final' one of 39,209 images, not
'Training_fixed', which has 26,640.

Order: training images by class folder 00000 … 00042 and, within a folder, in
the row order of its GT-<class>.csv; test images in the row order of
GT-final_test.csv. Images keep their own sizes (15 to 250 px) and are resized
when they are loaded.
"""

import csv
import io
import re
from collections.abc import Iterator

import tensorflow_datasets as tfds

from bdjax.data.builders import archive, base

_URL = 'https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/'
_TRAIN_CSV = re.compile(r'(?:.*/)?Final_Training/Images/(\d{5})/GT-\d{5}\.csv')
_TEST_CSV = re.compile(r'(?:.*/)?GT-final_test\.csv')
_TEST_FOLDER = re.compile(r'((?:.*/)?Final_Test/Images/)[^/]+\.ppm')


class Gtsrb(base.Builder, skip_registration=True):
  """GTSRB: 39,209 training and 12,630 test images, 43 classes."""

  VERSION = tfds.core.Version('1.0.0')
  URL = _URL + 'GTSRB_Final_Test_GT.zip'
  ARCHIVES = (
    archive.Remote(
      _URL + 'GTSRB_Final_Training_Images.zip',
      'f33fd80ac59bff73c82d25ab499e03a3',
    ),
    archive.Remote(
      _URL + 'GTSRB_Final_Test_Images.zip', 'c7e4e6327067d32654124b0fe9e82185'
    ),
    archive.Remote(
      _URL + 'GTSRB_Final_Test_GT.zip', 'fe31e9c9270bbcd7b84b7f21a9d9d9e5'
    ),
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self._describe(
      description='German traffic signs, 43 classes, original sizes.',
      homepage='https://benchmark.ini.rub.de/',
      labels=tfds.features.ClassLabel(num_classes=43),
      image=tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
    )

  def _split_generators(self, dl_manager):
    files = archive.gather(
      dl_manager, self.ARCHIVES, self.manual, 'Final_Training/Images'
    )
    return {
      'train': self._generate_examples('train', _train(files)),
      'test': self._generate_examples('test', _test(files)),
    }


def _train(files: archive.Files) -> Iterator[dict]:
  """Training examples, class by class."""
  tables = [m for m in map(_TRAIN_CSV.fullmatch, files.names()) if m]
  for table in sorted(tables, key=lambda m: m[1]):
    folder = table[0].rpartition('/')[0] + '/'
    for row in _rows(files, table[0]):
      if int(row['ClassId']) != int(table[1]):
        raise ValueError(f'{table[0]}: {row["Filename"]} is of another class.')
      yield _example(files, folder, row)


def _test(files: archive.Files) -> Iterator[dict]:
  """Test examples in the order of the ground truth."""
  table = _only(files, _TEST_CSV, 'GT-final_test.csv')[0]
  folder = _only(files, _TEST_FOLDER, 'Final_Test/Images/*.ppm')[1]
  for row in _rows(files, table):
    yield _example(files, folder, row)


def _only(files: archive.Files, pattern: re.Pattern, what: str) -> re.Match:
  """The first file whose name has the pattern."""
  for match in map(pattern.fullmatch, files.names()):
    if match:
      return match
  raise FileNotFoundError(f'GTSRB: {what} is not among the files.')


def _rows(files: archive.Files, name: str) -> csv.DictReader:
  text = files.read(name).decode('utf-8-sig')
  return csv.DictReader(io.StringIO(text), delimiter=';')


def _example(files: archive.Files, folder: str, row: dict[str, str]) -> dict:
  """Decodes one picture, since TFDS does not read the PPM format."""
  from PIL import Image

  with Image.open(io.BytesIO(files.read(folder + row['Filename']))) as image:
    return {'image': image.convert('RGB'), 'label': int(row['ClassId'])}
