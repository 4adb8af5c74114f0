import collections
import importlib.util
import os
import pathlib
import pickle
import struct
import warnings
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from PIL import Image

from bdjax.zoo import torch_files
from tests.zoo import torch_writer as writer

Name, Call = writer.Name, writer.Call


class _Case(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.folder = tmp_path
    self.path = tmp_path / 'file.pt'

  def read(self, value, protocol=2):
    return torch_files.read(writer.save(self.path, value, protocol))

  def assert_refused(self, pattern, path=None):
    with self.assertRaisesRegex(torch_files.RefusedFileError, pattern):
      torch_files.read(path or self.path)


class ReadTest(_Case):
  @parameterized.parameters(*writer.KINDS)
  def test_every_kind_of_storage(self, dtype):
    dtype = np.dtype(jnp.bfloat16 if dtype == 'bfloat16' else dtype)
    array = np.array([[0, 1, 2], [3, 100, 1]]).astype(dtype)
    (read,) = self.read([writer.tensor(array)])
    self.assertEqual(read.dtype, array.dtype)
    np.testing.assert_array_equal(read, array)

  def test_strides_and_offsets_share_one_storage(self):
    storage = writer.Storage(np.arange(12, dtype=np.float32))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {
      'transposed': (writer.Tensor(storage, 0, (4, 3), (1, 4)), whole.T),
      'column': (writer.Tensor(storage, 1, (3,), (4,)), whole[:, 1]),
      'scalar': (writer.Tensor(storage, 11, (), ()), whole[2, 3]),
      'empty': (writer.Tensor(storage, 0, (0, 4), (4, 1)), whole[:0]),
    }
    read = self.read({name: view for name, (view, _) in views.items()})
    for name, (_, wanted) in views.items():
      self.assertEqual(read[name].shape, wanted.shape)
      np.testing.assert_array_equal(read[name], wanted)

  def test_big_endian_files(self):
    array = np.array([1.5, -2.0], np.float32)
    content, _ = writer.stream(writer.tensor(array))
    raw = array.astype('>f4').tobytes()
    writer.save_stream(self.path, content, [raw], order=b'big')
    np.testing.assert_array_equal(torch_files.read(self.path), array)

  def test_plain_values_stay(self):
    value = {
      'a': [1, 2.5, None],
      'b': ('x', True, 2**70),
      3: {'c': b'\x00\xff'},
    }
    value['d'] = {1, 2}
    self.assertEqual(self.read(value), value)

  def test_ordered_dictionaries_lose_their_attributes(self):
    value = collections.OrderedDict(b=1, a=2)
    value._metadata = {'version': 1}  # as torch's state dictionaries have
    read = self.read(value)
    self.assertIs(type(read), dict)
    self.assertEqual(list(read.items()), [('b', 1), ('a', 2)])

  @parameterized.parameters(2, 3, 4)
  def test_numpy_arrays_and_numbers(self, protocol):
    value = {
      'array': np.arange(6, dtype=np.int64).reshape(2, 3),
      'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
      'big': np.array([1, 2], '>i4'),
      'text': np.array(['a', 'bc']),
      'none': np.zeros((0, 3)),
      np.int64(7): np.float32(0.5),
    }
    read = self.read(value, protocol)
    self.assertIs(type(read[7]), float)
    for name in ('array', 'fortran', 'big', 'text', 'none'):
      np.testing.assert_array_equal(read[name], value[name])
      self.assertEqual(read[name].shape, value[name].shape)

  @parameterized.parameters(
    ('RGB', (5, 4, 3)), ('L', (5, 4)), ('RGBA', (5, 4, 4))
  )
  def test_pictures_become_arrays(self, mode, shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    picture = Image.fromarray(pixels)
    self.assertEqual(picture.mode, mode)
    np.testing.assert_array_equal(self.read([picture])[0], pixels)

  def test_pictures_opened_from_a_file(self):
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    Image.fromarray(pixels).save(self.folder / 'x.png')
    with Image.open(self.folder / 'x.png') as picture:
      picture.load()
      self.assertEqual(type(picture).__name__, 'PngImageFile')
      np.testing.assert_array_equal(self.read((picture, 1))[0], pixels)

  def test_parameters_sizes_and_devices(self):
    wrap = Name('torch._utils', '_rebuild_parameter')
    data = writer.tensor(np.ones(2, np.float32))
    value = {
      'weight': Call(
        wrap, (data, True, Call(Name('collections', 'OrderedDict'), ()))
      ),
      'size': Call(Name('torch', 'Size'), ((2, 3),)),
      'device': Call(Name('torch', 'device'), ('cuda', 0)),
    }
    read = self.read(value)
    np.testing.assert_array_equal(read['weight'], [1, 1])
    self.assertEqual((read['size'], read['device']), ((2, 3), 'cuda:0'))

  def test_arrays_cannot_be_written(self):
    read = self.read(writer.tensor(np.ones(2, np.float32)))
    with self.assertRaisesRegex(ValueError, 'read-only'):
      read[0] = 2

  @pytest.mark.skipif(
    importlib.util.find_spec('torch') is None, reason='needs torch'
  )
  def test_a_file_of_torch_itself(self):
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # torch's own
      import torch

      net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)
      )
      base = torch.arange(12.0)
      picture = Image.fromarray(np.full((2, 2, 3), 7, np.uint8))
      value = {
        'model': net.state_dict(),
        'parameter': net[0].weight,
        'view': base.reshape(3, 4).T[1:],
        'half': base.to(torch.bfloat16),
        'memory': {np.int64(3): (picture, torch.tensor(1), np.array(2))},
        'array': np.eye(2),
        'size': base.shape,
        'device': torch.device('cpu'),
      }
      torch.save(value, self.path)
    read = torch_files.read(self.path)
    for name, wanted in net.state_dict().items():
      np.testing.assert_array_equal(read['model'][name], wanted.numpy())
    np.testing.assert_array_equal(
      read['parameter'], net[0].weight.detach().numpy()
    )
    np.testing.assert_array_equal(read['view'], value['view'].numpy())
    self.assertEqual(read['half'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(read['memory'][3][0], np.full((2, 2, 3), 7))
    self.assertEqual(read['memory'][3][1:], (1, 2))
    self.assertEqual((read['size'], read['device']), ((12,), 'cpu'))


class HostileTest(_Case):
  def setUp(self):
    super().setUp()
    self.proof = self.folder / 'proof'

  def tearDown(self):
    self.assertFalse(self.proof.exists(), 'the file has run code')
    super().tearDown()

  @parameterized.parameters(
    ('os', 'system'),
    ('posix', 'system'),
    ('nt', 'system'),
    ('subprocess', 'Popen'),
    ('builtins', 'eval'),
    ('__builtin__', 'eval'),
    ('builtins', 'exec'),
    ('builtins', 'getattr'),
    ('builtins', '__import__'),
    ('operator', 'attrgetter'),
    ('functools', 'partial'),
    ('torch', 'load'),
    ('torch.hub', 'load'),
    ('numpy', 'load'),
    ('numpy.core.multiarray', 'fromfile'),
    ('PIL.Image', 'open'),
    ('_codecs', 'decode'),
    ('collections', 'defaultdict'),
    ('pickle', 'loads'),
  )
  def test_calls_are_refused_by_name(self, module, name):
    writer.save(self.path, [Call(Name(module, name), (f'touch {self.proof}',))])
    self.assert_refused(f'asks for `{module}.{name}`. Nothing was run')

  def test_a_whole_model_is_refused_with_the_cure(self):
    writer.save(self.path, Name('models.preact_resnet', 'PreActResNet'))
    self.assert_refused('PreActResNet`.*model.state_dict')

  def test_a_bare_mention_is_enough(self):
    writer.save(self.path, {'x': Name('os', 'system')})
    self.assert_refused('asks for `os.system`')

  def test_dotted_names_lead_nowhere(self):
    # Protocol 4 resolves dots in a name as attributes.
    text = lambda s: b'\x8c' + bytes([len(s)]) + s
    for name in (
      b'OrderedDict.__init__.__globals__',
      b'OrderedDict.__reduce__',
    ):
      stream = b'\x80\x04' + text(b'collections') + text(name) + b'\x93.'
      writer.save_stream(self.path, stream)
      self.assert_refused('asks for `collections.OrderedDict.__')

  @parameterized.parameters(
    (b'\x82\x01', 'EXT1'),
    (b'(ios\nsystem\n', 'INST'),
    (b'Pspoon\n', 'PERSID'),
    (b'(cos\nsystem\no', 'OBJ'),
    (b'\x97', 'NEXT_BUFFER'),
  )
  def test_foreign_opcodes(self, opcodes, name):
    writer.save_stream(self.path, b'\x80\x02' + opcodes + b'.')
    self.assert_refused(f'opcode {name}')

  @parameterized.parameters(
    'ctorch._utils\n_rebuild_tensor_v2\n',
    'ccollections\nOrderedDict\n',
    'cPIL.Image\nImage\n',
    'cnumpy\ndtype\n',
    'ctorch\nFloatStorage\n',
  )
  def test_makers_cannot_be_changed(self, name):
    # BUILD with (None, {attribute: value}) sets attributes.
    state = b'N}X\x07\x00\x00\x00__doc__X\x01\x00\x00\x00xs\x86b'
    writer.save_stream(self.path, b'\x80\x02' + name.encode() + state + b'.')
    self.assert_refused('cannot be read: TypeError')
    self.assertEqual(torch_files.read(self._honest()), {'a': 1})

  def _honest(self):
    value = collections.OrderedDict(a=1)
    return writer.save(self.folder / 'honest.pt', value)

  @parameterized.named_parameters(
    ('beyond', 0, (3, 2), (2, 1), 'beyond its storage'),
    ('offset', 5, (1,), (1,), 'beyond its storage'),
    ('expanded', 0, (1000, 1000, 1000), (0, 0, 0), 'save x.contiguous'),
    ('negative', 4, (2,), (-1,), 'sizes that are no counts'),
    ('float', 0, (2.0,), (1,), 'sizes that are no counts'),
    ('rank', 0, (2, 2), (1,), 'with strides'),
  )
  def test_tensors_stay_within_their_storage(self, offset, size, stride, text):
    storage = writer.Storage(np.arange(5, dtype=np.float32))
    writer.save(self.path, writer.Tensor(storage, offset, size, stride))
    self.assert_refused(text)

  def test_storages_are_as_long_as_they_say(self):
    content, _ = writer.stream(writer.tensor(np.ones(4, np.float32)))
    writer.save_stream(self.path, content, [b'\0' * 15])
    self.assert_refused('shorter than it says')

  @parameterized.parameters('O', 'V8', 'f4,O', 'M8[ns]')
  def test_arrays_of_objects(self, dtype):
    make = Call(Name('numpy', 'dtype'), (dtype, False, True))
    writer.save(self.path, make)
    self.assert_refused('arrays of dtype')

  def test_real_arrays_of_objects(self):
    writer.save(self.path, np.array([{}, None], object))
    self.assert_refused("dtype 'O8'")

  def test_pictures_with_a_palette(self):
    picture = Image.fromarray(np.zeros((2, 2), np.uint8)).convert('P')
    writer.save(self.path, picture)
    self.assert_refused("mode 'P'; convert it to RGB")

  def test_pictures_as_large_as_they_say(self):
    cls = Name('PIL.Image', 'Image')
    head = f'c{cls.module}\n{cls.__name__}\n'.encode()
    state, _ = writer.stream([{}, 'RGB', (10**6, 10**6), None, b'abc'])
    state = state.removeprefix(b'\x80\x02').removesuffix(b'.')
    writer.save_stream(self.path, b'\x80\x02' + head + b')\x81' + state + b'b.')
    self.assert_refused('cannot be read: ValueError.*reshape')

  def test_compressed_bombs(self):
    content, _ = writer.stream(writer.tensor(np.zeros(10**6, np.uint8)))
    writer.save_stream(
      self.path,
      content,
      [b'\0' * 10**6],
      compression=zipfile.ZIP_DEFLATED,
    )
    self.assertLess(os.path.getsize(self.path), 10**4)
    self.assert_refused('compressed entries')

  def test_overlapping_entries(self):
    writer.save(self.path, writer.tensor(np.zeros(1000, np.uint8)))
    content = bytearray(self.path.read_bytes())
    at = content.rindex(
      b'PK\x01\x02', 0, content.index(b'archive/data/0', -400)
    )
    content[at + 20 : at + 28] = struct.pack('<II', 10**6, 10**6)
    self.path.write_bytes(content)
    self.assert_refused('claims more bytes than it has')

  def test_memo_bombs(self):
    stream = b'\x80\x02Kxr' + struct.pack('<I', 2**31) + b'.'
    writer.save_stream(self.path, stream)
    self.assert_refused('memo of 2147483648 entries')

  def test_many_references_stay_shared(self):
    value = ['x']
    for _ in range(60):  # 2⁶⁰ leaves, were they copied
      value = [value, value]
    read = self.read(value)
    self.assertIs(read[0], read[1])

  def test_cycles(self):
    value = []
    value.append(value)
    writer.save(self.path, value)
    self.assert_refused('contains itself')

  def test_depth(self):
    stream = b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.'
    writer.save_stream(self.path, stream)
    self.assert_refused('RecursionError')

  @parameterized.parameters(
    b'', b'\x80\x02', b'\x80\x02}q', b'garbage', b'\x80\x02R.'
  )
  def test_broken_streams(self, stream):
    writer.save_stream(self.path, stream)
    self.assert_refused('damaged')

  def test_damaged_storages(self):
    writer.save(self.path, writer.tensor(np.arange(100, dtype=np.uint8)))
    content = bytearray(self.path.read_bytes())
    content[content.index(bytes(range(100))) + 5] ^= 1
    self.path.write_bytes(content)
    self.assert_refused('BadZipFile.*damaged')


class FormatTest(_Case):
  def test_missing_files(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no file .*file.pt'):
      torch_files.read(self.path)

  def test_files_of_old_torch(self):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    self.path.write_bytes(magic + pickle.dumps(1001, 2))
    self.assert_refused(r'before 1.6. Save it again.*weights_only=True')

  def test_bare_pickles(self):
    self.path.write_bytes(pickle.dumps({'a': 1}))
    self.assert_refused('bare pickle.*torch.save')

  @parameterized.parameters(b'', b'hello')
  def test_other_files(self, content):
    self.path.write_bytes(content)
    self.assert_refused('no zip archive')

  def test_torchscript(self):
    writer.save(self.path, {})
    with zipfile.ZipFile(self.path, 'a') as archive:
      archive.writestr('archive/constants.pkl', b'')
    self.assert_refused('TorchScript.*state_dict')

  def test_other_archives(self):
    with zipfile.ZipFile(self.path, 'w') as archive:
      archive.writestr('a.txt', b'')
    self.assert_refused('0 streams data.pkl')

  def test_paths_of_both_kinds(self):
    writer.save(self.path, 1)
    self.assertEqual(torch_files.read(str(self.path)), 1)
    self.assertEqual(torch_files.read(pathlib.Path(self.path)), 1)
