import dataclasses
import enum
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import types
from bdjax.zoo import digest


class Mode(enum.Enum):
  FAST = 1


class Rank(enum.IntEnum):
  FIRST = 1


@types.hparams
class HParams:
  lr: float = 0.1
  num_epochs: int = 3
  norm: str = 'linf'


class Pair(NamedTuple):
  a: int
  b: float


class DigestTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('sorted', {'b': 1, 'a': {'d': 2, 'c': 3}}, '{"a":{"c":3,"d":2},"b":1}'),
    ('float', 0.1 + 0.2, '0.30000000000000004'),
    ('small', 1e-5, '1e-05'),
    ('integral_float', [1.0, -0.0, 1e300], '[1,0,1e+300]'),
    ('tuple', (1, None, True), '[1,null,true]'),
    ('enum', [Mode.FAST, Rank.FIRST], '["FAST","FIRST"]'),
    ('hparams', HParams(), '{"lr":0.1,"norm":"linf","num_epochs":3}'),
    ('named_tuple', Pair(1, 0.5), '{"a":1,"b":0.5}'),
    ('float32', np.float32(0.1), '0.1'),
    ('float64', np.float64(0.1), '0.1'),
    ('int64', np.int64(7), '7'),
    ('numpy_bool', np.bool_(True), 'true'),
    ('array', np.array([[0.1], [2.0]], np.float32), '[[0.1],[2]]'),
    ('non_finite', [float('nan'), -np.inf], '["nan","-inf"]'),
    ('text', 'é', '"\\u00e9"'),
    ('int_keys', {2: 'b', 1: 'a'}, '{"1":"a","2":"b"}'),
  )
  def test_canonical_json(self, value, expected):
    assert digest.canonical_json(value) == expected

  def test_jax_scalars_keep_their_own_width(self):
    value = [jnp.float32(0.3), jnp.bfloat16(0.3), jnp.int32(3)]
    assert digest.canonical_json(value) == '[0.3,0.300781,3]'
    assert digest.canonical_json({'lr': jnp.float32(0.1)}) == '{"lr":0.1}'

  def test_non_finite_can_be_null(self):
    assert digest.plain([np.nan, 1.5], 'null') == [None, 1.5]

  @parameterized.parameters(
    (pathlib.PurePosixPath('/data'), 'path'),
    (len, 'its name'),
    ({1, 2}, 'not plain data'),
    ({1.5: 0}, 'strings'),
    ({1: 0, '1': 0}, 'unique'),
  )
  def test_refuses_what_is_not_plain(self, value, words):
    with self.assertRaisesRegex(TypeError, words):
      digest.digest({'x': value} if not isinstance(value, dict) else value)

  def test_refuses_keys(self):
    with self.assertRaisesRegex(TypeError, 'seed'):
      digest.digest(jax.random.key(0))

  def test_golden(self):
    assert digest.digest({'eps': 0.1, 'norm': 'linf'}) == '7246a91bd699ef24'
    assert digest.digest({}) == '44136fa355b3678a'  # SHA-256 of '{}'

  def test_order_of_keys_does_not_matter(self):
    assert digest.digest({'norm': 'linf', 'eps': 0.1}) == '7246a91bd699ef24'


class RunIdTest(parameterized.TestCase):
  base = dict(
    stage='attack',
    method='badnets',
    method_version=1,
    hparams=HParams(),
    dataset_id='toy-1',
    seed=0,
    parents=('0' * 16, '1' * 16),
    arch='tiny',
    arch_options={'width': 8},
  )

  def test_golden(self):
    assert digest.run_id(**self.base) == 'a749510b97d2a59f'

  @parameterized.parameters(
    dict(stage='defend'),
    dict(method='blended'),
    dict(method_version=2),
    dict(hparams=dataclasses.replace(HParams(), lr=0.2)),
    dict(dataset_id='toy-2'),
    dict(seed=1),
    dict(parents=('1' * 16, '0' * 16)),
    dict(parents=()),
    dict(arch='vgg19_bn'),
    dict(arch_options={'width': 16}),
  )
  def test_everything_that_decides_numbers_enters(self, **change):
    assert digest.run_id(**self.base | change) != digest.run_id(**self.base)

  def test_equal_settings_have_equal_names(self):
    plain = {'norm': 'linf', 'num_epochs': 3, 'lr': 0.1}
    traced = HParams(lr=jnp.float32(0.1))  # pyrefly: ignore
    for hparams in (plain, traced, HParams()):
      same = digest.run_id(**self.base | dict(hparams=hparams))
      assert same == digest.run_id(**self.base)
