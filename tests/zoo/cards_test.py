import json

import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax.zoo import cards, files

FACTS = dict(
  run_id='0123456789abcdef',
  stage='attack',
  method='badnets',
  dataset='cifar10',
  arch='preactresnet18',
  num_classes=10,
  seed=0,
)


def _card(**changes) -> cards.Card:
  return cards.Card(**FACTS | changes)


class CardTest(parameterized.TestCase):
  def test_round_trip(self):
    card = _card(
      parents=('f' * 16, 'e' * 16),
      hparams={'eps': (0.1, jnp.float32(0.2)), 'norm': None},
      data={'num_train': np.int64(50000), 'reserved': np.arange(3)},
      metrics={'c_acc': np.float32(0.9), 'loss': float('nan')},
      state=('model', 'attack'),
      arch_options={'width': 16},
    )
    assert card.hparams == {'eps': [0.1, 0.2], 'norm': None}
    assert card.data == {'num_train': 50000, 'reserved': [0, 1, 2]}
    assert card.metrics == {'c_acc': 0.9, 'loss': None}
    assert cards.from_json(cards.to_json(card)) == card

  @parameterized.parameters(
    ('clean', 'clean'),
    ('attack', 'attacked'),
    ('defend', 'defended'),
    ('reactivate', 'reactivated'),
    ('existence', 'measured'),
    ('detect', 'measured'),
  )
  def test_kind_follows_stage(self, stage, kind):
    assert _card(stage=stage).kind == kind

  def test_folder(self):
    assert _card().name == 'attacked/cifar10/preactresnet18/0123456789abcdef'
    assert _card(stage='connect').name == 'measured/connect/0123456789abcdef'

  def test_unknown_fields_are_kept(self):
    values = json.loads(cards.to_json(_card())) | {'mood': {'a': [1]}}
    card = cards.from_json(json.dumps(values))
    assert card.extra == {'mood': {'a': [1]}}
    assert json.loads(cards.to_json(card)) == values

  @parameterized.parameters('run_id', 'arch', 'num_classes', 'seed')
  def test_missing_field_is_named_with_its_file(self, name):
    values = json.loads(cards.to_json(_card()))
    del values[name]
    with self.assertRaisesRegex(
      ValueError, f'x/card.json has no field `{name}`.*--force'
    ):
      cards.from_json(json.dumps(values), 'x/card.json')

  def test_missing_optional_fields_take_defaults(self):
    card = cards.from_json(json.dumps(FACTS | {'kind': 'attacked'}))
    assert card == _card()

  @parameterized.parameters(
    ({'seed': '0'}, '`seed=.*must be a int'),
    ({'seed': True}, '`seed=True'),
    ({'stage': 'atack'}, "Did you mean 'attack'"),
    ({'kind': 'atacked'}, "Did you mean 'attacked'"),
    ({'arch': '../../etc'}, 'x/card.json does not fit: `arch='),
    ({'parents': 3}, 'x/card.json does not fit'),
  )
  def test_bad_values_are_named_with_their_file(self, change, words):
    values = json.loads(cards.to_json(_card())) | change
    with self.assertRaisesRegex(ValueError, words):
      cards.from_json(json.dumps(values), 'x/card.json')

  @parameterized.parameters('', '{"run_id": "0', '[]')
  def test_damaged_text(self, text):
    with self.assertRaisesRegex(files.CorruptArtefactError, 'x/card.json'):
      cards.from_json(text, 'x/card.json')

  @parameterized.parameters('', '.hidden', 'a/b', 'a*')
  def test_names_of_folders(self, name):
    with self.assertRaisesRegex(ValueError, '`dataset=.*name of a folder'):
      _card(dataset=name)
