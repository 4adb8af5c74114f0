import functools
import shutil

import numpy as np
import pytest
from absl.testing import parameterized
from PIL import Image

from bdjax import types
from bdjax.zoo import backdoorbench, torch_files, triggered
from tests.zoo import run_folders
from tests.zoo import torch_writer as writer

N, M, K = 300, 40, 4  # training and test images, classes
RNG = np.random.default_rng(0)
TRAIN_LABELS = RNG.integers(K, size=N).astype(np.int32)
TEST_LABELS = RNG.integers(K, size=M).astype(np.int32)
TRAIN_IMAGES = RNG.integers(256, size=(N, 6, 5, 3), dtype=np.uint8)
TEST_IMAGES = RNG.integers(256, size=(M, 6, 5, 3), dtype=np.uint8)
WEIGHTS = {'conv1.weight': np.ones((2, 3, 3, 3), np.float32)}
Stored = triggered.Stored
TRAIN_FOLDER, TEST_FOLDER = triggered.FOLDERS.values()


def _stored(index, images, true, labels) -> Stored:
  images = images[index].copy()
  images[:, -1, -1] = 255
  return Stored(
    np.asarray(index, np.int32), images, labels.astype(np.int32), true[index]
  )


@functools.cache
def _train() -> Stored:
  index = np.arange(3, N, 10)
  return _stored(index, TRAIN_IMAGES, TRAIN_LABELS, np.full(len(index), 1))


@functools.cache
def _test(target=1) -> Stored:
  index = np.flatnonzero(TEST_LABELS != target)
  labels = np.full(len(index), target)
  return _stored(index, TEST_IMAGES, TEST_LABELS, labels)


def _assert_same(given: Stored, wanted: Stored):
  for name in Stored._fields:
    x, y = getattr(given, name), getattr(wanted, name)
    np.testing.assert_array_equal(x, y, name)
    assert x.dtype == y.dtype, name


class _Case(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.folder = tmp_path / 'cifar10_tiny_badnet_0_1'

  def write(self, layout='disk', train=None, test=None, **options):
    return run_folders.write(
      self.folder,
      layout,
      WEIGHTS,
      _train() if train is None else train,
      _test() if test is None else test,
      num_train=N,
      num_test=M,
      **options,
    )

  def read(self, **options):
    source = backdoorbench.open_run(self.folder)
    return backdoorbench.read_poison(source, TRAIN_LABELS, **options)


class LayoutsTest(_Case):
  @parameterized.parameters(*run_folders.LAYOUTS)
  def test_images_labels_and_positions(self, layout):
    self.write(layout)
    poison = self.read()
    _assert_same(poison.train, _train())
    _assert_same(poison.test, _test())
    kind = np.zeros(N, np.int8)
    kind[_train().index] = types.POISONED
    np.testing.assert_array_equal(poison.kind, kind)
    self.assertEqual(poison.kind.dtype, np.int8)

  @parameterized.parameters(*run_folders.LAYOUTS)
  def test_facts(self, layout):
    arguments = {
      'attack': 'badnet',
      'pratio': 0.1,
      'lr': 0.01,
      'device': 'cuda:0',
    }
    self.write(layout, arguments=arguments)
    source = backdoorbench.open_run(self.folder)
    np.testing.assert_array_equal(source.weights['conv1.weight'], 1)
    self.assertEqual(
      (source.arch, source.dataset, source.num_classes, source.image_shape),
      ('tiny', 'synthetic', K, (6, 5, 3)),
    )
    poison = self.read()
    self.assertEqual(
      (poison.name, poison.label_mode, poison.target_label),
      ('badnets', 'all2one', 1),
    )
    self.assertEqual((poison.poison_ratio, poison.clean_label), (0.1, False))

  def test_the_file_itself_names_the_run(self):
    self.write()
    source = backdoorbench.open_run(self.folder / 'attack_result.pt')
    self.assertEqual(source.folder, self.folder)

  def test_a_folder_without_training_images(self):
    for layout in run_folders.LAYOUTS:
      shutil.rmtree(self.folder, ignore_errors=True)
      run_folders.write(
        self.folder, layout, WEIGHTS, None, _test(), num_train=N, num_test=M
      )
      poison = self.read()
      self.assertFalse(poison.kind.any())
      self.assertEqual(poison.train.images.shape, (0, 6, 5, 3))
      self.assertIsNone(poison.poison_ratio)
      self.assertFalse(poison.clean_label)

  def test_images_elsewhere_are_found_by_the_end_of_their_path(self):
    # Names with a suffix are in no directory of our own making.
    self.write()
    content = torch_files.read(self.folder / 'attack_result.pt')
    name = TEST_FOLDER
    (self.folder / name).rename(self.folder / f'{name}_stage')
    entries = content['bd_test']['bd_data_container']['data_dict']
    for entry in entries.values():
      entry['path'] = entry['path'].replace(name, f'{name}_stage')
    content['model'] = writer.tensors(content['model'])
    writer.save(self.folder / 'attack_result.pt', content)
    _assert_same(self.read().test, _test())

  def test_gray_images(self):
    gray = lambda s: s._replace(images=s.images[..., :1].repeat(1, -1))
    train, test = gray(_train()), gray(_test())
    triggered.write(self.folder, train, test)
    path = self.folder / TRAIN_FOLDER
    i, original = train.index[0], train.original[0]
    with Image.open(path / str(original) / f'{i}.png') as picture:
      np.testing.assert_array_equal(
        np.asarray(picture), train.images[0, ..., 0]
      )

  def test_written_images_are_read_again(self):
    self.write()
    for name in (TRAIN_FOLDER, TEST_FOLDER):
      shutil.rmtree(self.folder / name)
    triggered.write(self.folder, _train(), _test())
    poison = self.read()
    _assert_same(poison.train, _train())
    _assert_same(poison.test, _test())
    with self.assertRaises(FileExistsError):
      triggered.write(self.folder, _train(), _test())


def _poison(**changes) -> backdoorbench.Poison:
  values = dict(
    name='badnets',
    label_mode='all2one',
    target_label=1,
    label_shift=1,
    poison_ratio=0.1,
    clean_label=False,
    kind=np.zeros(N, np.int8),
    train=_train(),
    test=_test(),
  )
  return backdoorbench.Poison(**(values | changes))


class RulesTest(_Case):
  def test_all_to_all(self):
    index = np.arange(M)
    test = _stored(index, TEST_IMAGES, TEST_LABELS, (TEST_LABELS + 3) % K)
    self.write(test=test)
    poison = self.read()
    self.assertEqual(
      (poison.label_mode, poison.target_label, poison.label_shift),
      ('all2all', None, 3),
    )

  def test_clean_label(self):
    index = np.flatnonzero(TRAIN_LABELS == 1)[::2]
    train = _stored(index, TRAIN_IMAGES, TRAIN_LABELS, np.full(len(index), 1))
    self.write(train=train)
    poison = self.read()
    self.assertTrue(poison.clean_label)
    np.testing.assert_array_equal(np.flatnonzero(poison.kind), index)
    self.assertTrue(np.all(poison.kind[index] == types.POISONED))
    self.assertEqual(poison.poison_ratio, len(index) / N)

  def test_labels_without_a_rule(self):
    labels = RNG.permutation(np.arange(len(_test().index)) % K)
    self.write(test=_test()._replace(labels=labels.astype(np.int32)))
    with self.assertRaisesRegex(ValueError, 'lead to 4 classes'):
      self.read()

  @parameterized.parameters(
    ('badnet', 'badnets'),
    ('BadNets', 'badnets'),
    ('inputaware', 'input_aware'),
    ('InputAware', 'input_aware'),
    ('ftrojann', 'ftrojan'),
    ('low_frequency', 'lf'),
    ('label-consistent', 'lc'),
    ('wanet', 'wanet'),
    ('sig', 'sig'),
  )
  def test_names_become_registry_keys(self, given, wanted):
    source = _source(arguments={'attack': given})
    self.assertEqual(backdoorbench._attack_name(source), wanted)
    folder = self.folder.with_name(f'cifar10_preactresnet18_{given}_0_05')
    source = _source(folder=folder)
    self.assertEqual(backdoorbench._attack_name(source), wanted)

  def test_a_name_can_be_given(self):
    self.write()
    self.folder = self.folder.rename(self.folder.with_name('run7'))
    with self.assertRaisesRegex(ValueError, "'run7'.*--attack.*badnets"):
      self.read()
    self.assertEqual(self.read(name='lira').name, 'lira')


def _source(**changes) -> backdoorbench.Source:
  values = dict(
    folder=None,
    weights={},
    arch='tiny',
    dataset='synthetic',
    num_classes=K,
    image_shape=(6, 5, 3),
    arguments={},
    parts={},
  )
  return backdoorbench.Source(**(values | changes))


def _mixed(target, ratio, cover, labels=TRAIN_LABELS, num_classes=K):
  """What an attack in the training loop stores, and the kinds of it."""
  kind = np.zeros(len(labels), np.int8)
  for start in range(0, len(labels), 128):
    size = min(128, len(labels) - start)
    n = max(1, int(ratio * size))
    kind[start : start + n] = types.POISONED
    kind[start + n : start + n + cover * n] = types.COVER
  index = np.flatnonzero(kind)
  if target is None:
    attacked = (labels + 1) % num_classes
  else:
    attacked = np.full_like(labels, target)
  given = np.where(kind == types.POISONED, attacked, labels)[index]
  images = np.zeros((len(index), 1, 1, 1), np.uint8)
  train = Stored(
    index.astype(np.int32), images, given.astype(np.int32), labels[index]
  )
  return train, kind


class KindsTest(parameterized.TestCase):
  @parameterized.product(
    target=(1, None),
    ratio=(0.001, 0.01, 0.05, 0.1),
    cover=(1, 2),
    told=(True, False),
  )
  def test_position_tells_what_labels_do_not(self, target, ratio, cover, told):
    train, kind = _mixed(target, ratio, cover)
    found, share = backdoorbench.kind_codes(
      train, N, target, ratio if told else None
    )
    np.testing.assert_array_equal(found, kind)
    # Ratios that fill the same number of slots cannot be told apart.
    slots = lambda r: max(1, int(r * 128))
    self.assertEqual(slots(share), slots(ratio))
    if told:
      self.assertEqual(share, ratio)

  def test_target_class_in_both_parts_of_a_block(self):
    labels = np.arange(208) % 2  # every other image is of the target class
    train, kind = _mixed(1, 0.1, 2, labels.astype(np.int32), 2)
    same = train.labels == train.original
    ambiguous = same & (train.original == 1)
    self.assertLen(set(kind[train.index][ambiguous]), 2)
    found, ratio = backdoorbench.kind_codes(train, 208, 1)
    np.testing.assert_array_equal(found, kind)
    self.assertEqual(ratio, 0.1)
    # The last block has 80 images and 8 poisoned ones.
    self.assertEqual(np.sum(found[128:] == types.POISONED), 8)

  def test_without_cover_all_are_poisoned(self):
    found, ratio = backdoorbench.kind_codes(_train(), N, 1)
    self.assertTrue(np.all(found[_train().index] == types.POISONED))
    self.assertEqual(ratio, 0.1)


class OrderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.train = [TRAIN_IMAGES, TRAIN_LABELS]
    self.test = [TEST_IMAGES, TEST_LABELS]

  def check(self, **changes):
    backdoorbench.check_order(_poison(**changes), self.train, self.test)

  def test_the_same_data_pass(self):
    self.check()

  def test_another_order_is_noticed(self):
    self.test[1] = np.roll(TEST_LABELS, 1)
    with self.assertRaisesRegex(
      ValueError, '% of the stored true labels.*test set.*torchvision'
    ):
      self.check()
    self.train[1] = np.roll(TRAIN_LABELS, 1)
    with self.assertRaisesRegex(ValueError, 'training set'):
      self.check()

  def test_a_patch_stays_in_its_place(self):
    self.train[0] = np.roll(TRAIN_IMAGES, 1, 0)
    with self.assertRaisesRegex(ValueError, 'training images differ.*no patch'):
      self.check()
    self.check(name='blended')

  def test_smaller_data(self):
    self.train = [TRAIN_IMAGES[:50], TRAIN_LABELS[:50]]
    with self.assertRaisesRegex(ValueError, 'has 50 here'):
      self.check()

  def test_other_sizes(self):
    self.train[0] = TRAIN_IMAGES[:, :5]
    with self.assertRaisesRegex(ValueError, r'\(6, 5, 3\).*\(5, 5, 3\)'):
      self.check()


class RefusalTest(_Case):
  def test_missing_results(self):
    with self.assertRaisesRegex(
      FileNotFoundError, 'no run at.*give the folder'
    ):
      backdoorbench.open_run(self.folder)
    self.folder.mkdir()
    with self.assertRaisesRegex(FileNotFoundError, 'attack_result.pt'):
      backdoorbench.open_run(self.folder)

  def test_other_contents(self):
    writer.save(self.folder / 'attack_result.pt', writer.tensors(WEIGHTS))
    with self.assertRaisesRegex(ValueError, 'no model_name.*read_weights'):
      backdoorbench.open_run(self.folder)

  def test_missing_images(self):
    self.write()
    shutil.rmtree(self.folder / TEST_FOLDER)
    with self.assertRaisesRegex(
      FileNotFoundError, 'no image.*unpack the whole'
    ):
      self.read()

  def test_missing_entries(self):
    self.write('memory')
    content = torch_files.read(self.folder / 'attack_result.pt')
    del content['bd_test']['bd_data_container']['data_dict'][
      int(_test().index[0])
    ]
    with self.assertRaisesRegex(ValueError, 'does not store it'):
      backdoorbench.read_poison(
        backdoorbench.open_run(self.folder)._replace(
          parts={k: content[k] for k in ('bd_train', 'bd_test')}
        ),
        TRAIN_LABELS,
      )

  def test_paths_do_not_lead_out_of_the_folder(self):
    self.write()
    outside = self.folder.parent / 'secret' / 'x'
    outside.mkdir(parents=True)
    name = TEST_FOLDER
    first = int(_test().index[0])
    inside = self.folder / name / str(_test().original[0]) / f'{first}.png'
    shutil.move(inside, outside / 'y.png')
    for path in (
      '../secret/x/y.png',
      'a/../../secret/x/y.png',
      '..\\..\\y.png',
    ):
      content = torch_files.read(self.folder / 'attack_result.pt')
      content['bd_test']['bd_data_container']['data_dict'][first]['path'] = path
      source = backdoorbench.open_run(self.folder)._replace(parts=content)
      with self.assertRaisesRegex(FileNotFoundError, 'no image'):
        backdoorbench.read_poison(source, TRAIN_LABELS)

  def test_images_of_another_size(self):
    self.write()
    first = _test().index[0]
    folder = self.folder / TEST_FOLDER
    path = folder / str(_test().original[0]) / f'{first}.png'
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    with self.assertRaisesRegex(ValueError, '9×9 pixels.*says 5×6'):
      self.read()

  def test_other_training_sets(self):
    self.write()
    source = backdoorbench.open_run(self.folder)
    with self.assertRaisesRegex(ValueError, 'made on 300.*299 here'):
      backdoorbench.read_poison(source, TRAIN_LABELS[:-1])

  def test_no_test_images(self):
    none = Stored(*(x[:0] for x in _test()))
    self.write(test=none)
    with self.assertRaisesRegex(ValueError, 'no triggered test images'):
      self.read()

  def test_hostile_arguments(self):
    self.write()
    proof = self.folder / 'proof'
    call = writer.Call(writer.Name('os', 'system'), (f'touch {proof}',))
    writer.save(self.folder / 'info.pickle', {'attack': call})
    with self.assertRaisesRegex(torch_files.RefusedFileError, 'move it away'):
      backdoorbench.open_run(self.folder)
    self.assertFalse(proof.exists())


class WeightsTest(_Case):
  @parameterized.parameters(None, 'model', 'state_dict')
  def test_alone_or_inside(self, name):
    weights = writer.tensors(WEIGHTS)
    content = {name: weights, 'num_classes': 3} if name else weights
    path = writer.save(self.folder / 'clean_model.pth', content)
    found = backdoorbench.read_weights(path)
    np.testing.assert_array_equal(
      found['conv1.weight'], WEIGHTS['conv1.weight']
    )

  @parameterized.parameters(
    ({},), ([1],), ({'a': 1},), ({'model': {'a': 'x'}},)
  )
  def test_no_weights(self, content):
    path = writer.save(self.folder / 'x.pth', content)
    with self.assertRaisesRegex(ValueError, 'no state dictionary.*torch.save'):
      backdoorbench.read_weights(path)
