import io
import pathlib
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import parameterized
from PIL import Image

from bdjax import data, registry
from bdjax.data import builders, tfds_source
from bdjax.data.builders import archive

TORCHVISION = (6, 9, 9, 4, 1, 1, 2, 7, 8, 3), (3, 8, 8, 0, 6, 6, 1, 6, 3, 1)


def picture(seed, size=(32, 32), mode='RGB'):
  """A smooth random picture, so that JPEG and resizing keep its values."""
  random = np.random.default_rng(seed)
  small = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  image = Image.fromarray(small).resize(size, Image.Resampling.BILINEAR)
  return image.convert(mode)


def encode(image, form):
  out = io.BytesIO()
  image.save(out, form)
  return out.getvalue()


def write(root, files):
  for name, content in files.items():
    path = pathlib.Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_zip(path, files):
  with zipfile.ZipFile(path, 'w') as target:
    for name, content in files.items():
      target.writestr(name, content)


class BuilderTest(parameterized.TestCase):
  """Folders for archives, data and cache; progress bars off."""

  def setUp(self):
    super().setUp()
    tfds.disable_progress_bar()
    root = pathlib.Path(self.create_tempdir().full_path)
    self.manual, self.data, self.cache = (
      root / name for name in ('manual', 'data', 'cache')
    )
    self.manual.mkdir()

  def prepare(self, name):
    return builders.prepare(name, data_dir=self.data, manual_dir=self.manual)

  def load(self, name):
    return data.load(name, data_dir=self.data, cache_dir=self.cache)


class CifarTest(BuilderTest):
  def fill(self):
    """Ten training images over five batches and ten test images."""
    random = np.random.default_rng(0)
    self.pixels = random.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.array(TORCHVISION[0] + TORCHVISION[1], np.uint8)
    rows = [
      bytes([label]) + image.tobytes()
      for label, image in zip(labels, self.pixels, strict=True)
    ]
    names = 'airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\n'
    files = {'batches.meta.txt': (names + 'truck\n\n').encode()}
    for i in range(5):
      files[f'data_batch_{i + 1}.bin'] = rows[2 * i] + rows[2 * i + 1]
    files['test_batch.bin'] = b''.join(rows[10:])
    write(self.manual / 'cifar-10-batches-bin', files)

  def test_images_come_back_in_the_order_of_the_batches(self):
    self.fill()
    folder = self.prepare('cifar10')
    self.assertEqual(folder, self.data / 'cifar10' / '3.0.2')
    dataset = self.load('cifar10')
    want = self.pixels.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.train.images, want[:10])
    np.testing.assert_array_equal(dataset.test.images, want[10:])
    self.assertTrue(data.in_torchvision_order(dataset))
    self.assertNotIn('tensorflow', sys.modules)

  def test_tfds_reads_it_as_its_own(self):
    self.fill()
    self.prepare('cifar10')
    builder = tfds.builder('cifar10', data_dir=self.data)
    row = builder.as_data_source('train')[3]
    self.assertEqual((row['id'], row['label']), (b'train_00003', 4))
    self.assertEqual(builder.info.features['label'].names[4], 'deer')

  def test_the_order_is_read_from_the_labels(self):
    spec = data.spec('cifar10')
    images = np.zeros((10, 32, 32, 3), np.uint8)
    train, test = (data.Split(images, np.array(y)) for y in TORCHVISION)
    self.assertTrue(data.in_torchvision_order(data.Dataset(spec, train, test)))
    self.assertFalse(data.in_torchvision_order(data.Dataset(spec, test, train)))
    with self.assertRaisesRegex(ValueError, "only \\['cifar10'\\]"):
      data.in_torchvision_order(data.load('synthetic'))

  def test_cifar100_keeps_fine_labels(self):
    rows = b''.join(bytes([i, 10 + i]) + bytes([i]) * 3072 for i in range(4))
    names = '\n'.join(f'c{i}' for i in range(100)).encode()
    coarse = '\n'.join(f'c{i}' for i in range(20)).encode()
    write(
      self.manual / 'cifar-100-binary',
      {
        'train.bin': rows,
        'test.bin': rows,
        'fine_label_names.txt': names,
        'coarse_label_names.txt': coarse,
      },
    )
    self.prepare('cifar100')
    dataset = self.load('cifar100')
    np.testing.assert_array_equal(dataset.train.labels, [10, 11, 12, 13])
    np.testing.assert_array_equal(dataset.train.images[:, 5, 5, 1], range(4))

  def test_the_archive_is_read_without_unpacking(self):
    self.fill()
    folder = self.manual / 'cifar-10-batches-bin'
    path = self.manual / 'cifar-10-binary.tar.gz'
    with tarfile.open(path, 'w:gz') as target:
      target.add(folder, folder.name)
    shutil.rmtree(folder)
    # TFDS knows the official sum, which only the official archive has.
    with mock.patch.object(
      tfds.download.DownloadManager, 'download', return_value=path
    ) as download:
      self.prepare('cifar10')
    download.assert_called_once_with(
      'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'
    )
    want = self.pixels.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(self.load('cifar10').train.images, want[:10])

  def test_a_foreign_archive_is_refused(self):
    (self.manual / 'cifar-10-binary.tar.gz').write_bytes(b'not it')
    with self.assertRaisesRegex(builders.PrepareError, 'wrong checksum'):
      self.prepare('cifar10')

  def test_an_empty_manual_folder_names_archive_and_address(self):
    with self.assertRaisesRegex(
      FileNotFoundError, r'cifar-10-binary\.tar\.gz.*https://www\.cs\.toronto'
    ):
      self.prepare('cifar10')


class GtsrbTest(BuilderTest):
  def fill(self, zipped=True, wrong_class=False):
    """Two classes whose tables are not in the order of the file names."""
    sizes = {}
    train, test = {}, {}
    for c, names in (
      (0, ('2.ppm', '1.ppm')),
      (42, ('7.ppm', '5.ppm', '6.ppm')),
    ):
      folder = f'GTSRB/Final_Training/Images/{c:05d}/'
      table = 'Filename;Width;Height;ClassId\n'
      for i, name in enumerate(names):
        sizes[c, name] = (40 + i, 25 + c)
        image = picture(c + i, sizes[c, name])
        train[folder + name] = encode(image, 'PPM')
        table += f'{name};40;25;{1 if wrong_class else c}\n'
      train[f'{folder}GT-{c:05d}.csv'] = table.encode()
    truth = 'Filename;Width;Height;ClassId\n'
    for i, label in ((1, 7), (0, 3)):
      test[f'GTSRB/Final_Test/Images/{i:05d}.ppm'] = encode(
        picture(50 + i, (32, 32)), 'PPM'
      )
      truth += f'{i:05d}.ppm;32;32;{label}\n'
    test['GTSRB/Final_Test/Images/GT-final_test.test.csv'] = b'Filename\n'
    last = {'GT-final_test.csv': truth.encode()}
    if zipped:
      write_zip(self.manual / 'GTSRB_Final_Training_Images.zip', train)
      write_zip(self.manual / 'GTSRB_Final_Test_Images.zip', test)
      write_zip(self.manual / 'GTSRB_Final_Test_GT.zip', last)
    else:
      write(self.manual / 'somewhere', train | test)
      write(self.manual, last)

  @parameterized.parameters(True, False)
  def test_examples_follow_classes_and_tables(self, zipped):
    self.fill(zipped)
    self.prepare('gtsrb')
    dataset = self.load('gtsrb')
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 42, 42, 42])
    np.testing.assert_array_equal(dataset.test.labels, [7, 3])
    seeds = (0, 1, 42, 43, 44)
    sizes = ((40, 25), (41, 25), (40, 67), (41, 67), (42, 67))
    for image, seed, size in zip(
      dataset.train.images, seeds, sizes, strict=True
    ):
      want = picture(seed, size).resize((32, 32), Image.Resampling.BILINEAR)
      np.testing.assert_array_equal(image, np.asarray(want))
    for image, seed in zip(dataset.test.images, (51, 50), strict=True):
      np.testing.assert_array_equal(image, np.asarray(picture(seed)))
    self.assertNotIn('tensorflow', sys.modules)

  def test_records_keep_original_sizes_and_sample_order(self):
    self.fill()
    folder = self.prepare('gtsrb')
    source = tfds.builder_from_directory(folder).as_data_source('train')
    self.assertEqual(
      [row['id'] for row in source], [b'train_%05d' % i for i in range(5)]
    )
    self.assertEqual(source[1]['image'].shape, (25, 41, 3))

  def test_a_second_call_does_nothing(self):
    self.fill()
    folder = self.prepare('gtsrb')
    before = (folder / 'dataset_info.json').stat().st_mtime_ns
    self.assertEqual(self.prepare('gtsrb'), folder)
    self.assertEqual((folder / 'dataset_info.json').stat().st_mtime_ns, before)

  def test_a_row_of_another_class_is_noticed(self):
    self.fill(wrong_class=True)
    with self.assertRaisesRegex(builders.PrepareError, 'of another class'):
      self.prepare('gtsrb')
    with self.assertRaises(data.MissingDataError):
      self.load('gtsrb')

  def test_a_damaged_archive_is_noticed(self):
    self.fill()
    path = self.manual / 'GTSRB_Final_Test_Images.zip'
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    with self.assertRaisesRegex(builders.PrepareError, 'Check the archives'):
      self.prepare('gtsrb')
    path.write_bytes(content[:-100])
    with self.assertRaisesRegex(builders.PrepareError, 'Check the archives'):
      self.prepare('gtsrb')

  def test_missing_archives_are_named(self):
    self.fill()
    (self.manual / 'GTSRB_Final_Test_GT.zip').unlink()
    with self.assertRaisesRegex(FileNotFoundError, 'GTSRB_Final_Test_GT.zip'):
      self.prepare('gtsrb')


class TinyImagenetTest(BuilderTest):
  def fill(self, sorted_val=False):
    """200 classes; class 0 has three images, one of them gray."""
    files, lines = {}, []
    for c in range(200):
      name = f'n{90000000 - c}'  # class 0 comes last by name
      for i in (2, 10, 1) if c == 0 else (0,):
        mode = 'L' if i == 10 else 'RGB'
        files[f'train/{name}/images/{name}_{i}.JPEG'] = encode(
          picture(c + i, (64, 64), mode), 'JPEG'
        )
      folder = f'val/{name}/images/' if sorted_val else 'val/images/'
      image = encode(picture(500 + c, (64, 64)), 'JPEG')
      files[f'{folder}val_{c}.JPEG'] = image
      lines.append(f'val_{c}.JPEG\t{name}\t0\t0\t62\t62\n')
    files['test/images/test_0.JPEG'] = image
    if not sorted_val:
      files['val/val_annotations.txt'] = ''.join(lines).encode()
    files['wnids.txt'] = b'unsorted'
    files = {f'tiny-imagenet-200/{k}': v for k, v in files.items()}
    write_zip(self.manual / 'tiny-imagenet-200.zip', files)
    return {k.rpartition('/')[2]: v for k, v in files.items()}

  @parameterized.parameters(False, True)
  def test_examples_follow_class_and_file_names(self, sorted_val):
    files = self.fill(sorted_val)
    self.prepare('tiny_imagenet')
    dataset = self.load('tiny_imagenet')
    np.testing.assert_array_equal(dataset.train.labels, [*range(200), 199, 199])
    np.testing.assert_array_equal(dataset.test.labels, range(200))
    names = [f'n90000000_{i}.JPEG' for i in (1, 10, 2)]
    self.assert_decoded(dataset.train.images[199:], files, names)
    names = [f'val_{199 - i}.JPEG' for i in range(200)]
    self.assert_decoded(dataset.test.images, files, names)

  def assert_decoded(self, images, files, names):
    for image, name in zip(images, names, strict=True):
      want = Image.open(io.BytesIO(files[name])).convert('RGB')
      np.testing.assert_array_equal(image, np.asarray(want))

  def test_ten_classes_are_every_twentieth(self):
    files = self.fill()
    folder = self.prepare('tiny_imagenet10')
    names = (folder / 'label.labels.txt').read_text().split()
    want = sorted(f'n{90000000 - c}' for c in range(200))[::20]
    self.assertEqual(names, want)
    dataset = self.load('tiny_imagenet10')
    np.testing.assert_array_equal(dataset.test.labels, range(10))
    image = f'val_{90000000 - int(want[3][1:])}.JPEG'
    self.assert_decoded(dataset.test.images[3:4], files, [image])

  def test_an_incomplete_archive_is_noticed(self):
    files = {'train/n1/images/n1_0.JPEG': encode(picture(0), 'JPEG')}
    write_zip(self.manual / 'tiny-imagenet-200.zip', files)
    with self.assertRaisesRegex(builders.PrepareError, '200 classes, but 1'):
      self.prepare('tiny_imagenet')


class PrepareTest(BuilderTest):
  @parameterized.parameters('cifar10', 'gtsrb', 'tiny_imagenet')
  def test_without_a_network_it_says_what_to_do(self, name):
    fault = urllib.error.URLError('no route')
    with mock.patch.object(urllib.request, 'urlopen', side_effect=fault):
      with self.assertRaises(builders.PrepareError) as caught:
        builders.prepare(name, data_dir=self.data)
    self.assertIn(
      f'python -m launch.prepare_data --dataset={name} --manual_dir=DIR',
      str(caught.exception),
    )
    self.assertIn('no route', str(caught.exception))

  def test_names_that_need_no_preparation(self):
    with self.assertRaisesRegex(ValueError, 'needs no preparation'):
      builders.prepare('synthetic')
    with self.assertRaisesRegex(registry.UnknownName, "mean 'gtsrb'"):
      builders.prepare('gtrsb')

  def test_the_manual_folder_must_exist(self):
    with self.assertRaisesRegex(FileNotFoundError, 'manual_dir'):
      builders.prepare('gtsrb', manual_dir=self.manual / 'nowhere')

  @parameterized.parameters(
    ('5d41402abc4b2a76b9719d911017c592', True), ('0' * 32, False)
  )
  def test_downloads_are_compared_with_their_checksum(self, md5, good):
    path = self.manual / 'x.zip'
    path.write_bytes(b'hello')
    manager = mock.Mock()
    manager.download.return_value = path
    remote = archive.Remote('http://host/x.zip', md5)
    self.assertEqual(remote.filename, 'x.zip')
    reached = zipfile.BadZipFile if good else ValueError
    with self.assertRaises(reached) as caught:
      archive.gather(manager, [remote], None, 'x')
    if not good:
      self.assertIn('delete it', str(caught.exception))


class TfdsSourceTest(BuilderTest):
  fill = CifarTest.fill

  def test_a_cached_split_is_not_decoded_again(self):
    self.fill()
    self.prepare('cifar10')
    first = self.load('cifar10')
    with mock.patch.object(
      tfds_source, '_decode_split', side_effect=AssertionError
    ):
      second = self.load('cifar10')
    np.testing.assert_array_equal(first.train.images, second.train.images)
    self.assertIsInstance(second.train.images, np.memmap)

  def test_another_folder_of_the_same_name_has_its_own_cache(self):
    self.fill()
    self.prepare('cifar10')
    first = self.load('cifar10')
    self.data = self.data.parent / 'other'
    batch = self.manual / 'cifar-10-batches-bin' / 'data_batch_1.bin'
    row = 3073
    content = batch.read_bytes()
    batch.write_bytes(content[row:] + content[:row])
    self.prepare('cifar10')
    second = self.load('cifar10')
    np.testing.assert_array_equal(
      second.train.images[:2], first.train.images[1::-1]
    )
    self.assertFalse(data.in_torchvision_order(second))

  def test_the_newest_version_is_taken(self):
    for version in ('3.0.2', '3.0.10', '3.1.0'):
      (self.data / 'cifar10' / version).mkdir(parents=True)
    for version in ('3.0.2', '3.0.10'):
      (self.data / 'cifar10' / version / 'dataset_info.json').write_text('{}')
    found = tfds_source.find('cifar10', self.data)
    self.assertEqual(found, self.data / 'cifar10' / '3.0.10')
    self.assertIsNone(tfds_source.find('cifar100', self.data))

  def test_a_missing_split_is_named(self):
    self.fill()
    folder = self.prepare('cifar10')
    with self.assertRaisesRegex(ValueError, "'val'.*Known: test, train"):
      tfds_source.read(folder, data.spec('cifar10'), self.cache, 'val')
