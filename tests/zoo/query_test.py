import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax.zoo import artefacts, cards, query

IDS = {
  'badnets': 'aaaa000000000000',
  'blended': 'aaab000000000000',
  'gtsrb': 'bbbb000000000000',
  'bec': 'cccc000000000000',
}


def _model(num_classes: int, value: float) -> dict:
  return {'kernel': jnp.full((2, num_classes), value)}


def _write(root, name: str, value: float = 0.0, **changes) -> None:
  facts = dict(
    run_id=IDS[name],
    stage='attack',
    method='badnets',
    dataset='cifar10',
    arch='tiny',
    num_classes=10,
    seed=0,
  )
  card = cards.Card(**facts | changes)
  state = {'model': _model(card.num_classes, value)}
  artefacts.write(
    root,
    card,
    state=state if card.kind != 'measured' else None,
    config={},
    metrics={},
  )


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  root = tmp_path_factory.mktemp('store')
  _write(root, 'badnets', 1.0)
  _write(root, 'blended', 2.0, method='blended', seed=1)
  _write(root, 'gtsrb', dataset='gtsrb', num_classes=43)
  _write(root, 'bec', stage='existence', method='bec')
  return root


class FindTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _store(self, store):
    self.root = store

  @parameterized.parameters(
    ('attacked/cifar10/tiny/*', ('badnets', 'blended')),
    ('attacked/*/tiny/*', ('badnets', 'blended', 'gtsrb')),
    ('attacked', ('badnets', 'blended', 'gtsrb')),
    ('attacked/cifar10/', ('badnets', 'blended')),
    ('attacked/cifar10/tiny/aaab*', ('blended',)),
    ('measured/existence/*', ('bec',)),
    ('*', ('badnets', 'blended', 'gtsrb', 'bec')),
    ('aaaa', ('badnets',)),
    ('bbbb000000000000', ('gtsrb',)),
    ('bbbb, measured, attacked/gtsrb', ('gtsrb', 'bec')),
    (['cccc', 'aaaa0'], ('bec', 'badnets')),
  )
  def test_patterns(self, pattern, names):
    found = query.find(self.root, pattern)
    assert [a.card.run_id for a in found] == [IDS[n] for n in names]

  def test_by_field(self):
    found = query.find(self.root, 'attacked', method='badnets', seed=0)
    assert [a.card.dataset for a in found] == ['cifar10', 'gtsrb']
    with self.assertRaisesRegex(
      FileNotFoundError, r'`seed=7`.*blended, seed 1\)'
    ):
      query.find(self.root, 'attacked', seed=7)

  def test_no_match_lists_what_there_is(self):
    with self.assertRaises(FileNotFoundError) as raised:
      query.find(self.root, 'attacked/cifar100/*')
    text = str(raised.exception)
    assert "'attacked/cifar100/*'" in text
    assert f'attacked/gtsrb/tiny/{IDS["gtsrb"]} (badnets, seed 0)' in text

  def test_one_empty_pattern_of_several_is_an_error(self):
    with self.assertRaisesRegex(FileNotFoundError, "'defended/"):
      query.find(self.root, 'attacked,defended/*')

  def test_empty_store(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no complete artefact'):
      query.find(self.root / 'nowhere', '*')

  @parameterized.parameters(
    ('', 'empty pattern'),
    ('/etc/*', 'leaves the store'),
    ('attacked/../*', 'leaves the store'),
  )
  def test_bad_patterns(self, pattern, words):
    with self.assertRaisesRegex(ValueError, words):
      query.find(self.root, pattern)

  def test_ambiguous_beginning(self):
    root = self.root.parent / 'ambiguous'
    _write(root, 'badnets')
    _write(root, 'blended')
    artefacts_found = query.find(root, 'aaab')
    assert len(artefacts_found) == 1
    with self.assertRaises(FileNotFoundError):
      query.find(root, 'aaa')  # too short to name a run
    card = artefacts_found[0].card
    twin = 'aaab000000000001'
    artefacts.write(
      root,
      cards.Card(
        **{
          **{n: getattr(card, n) for n in ('stage', 'method', 'dataset')},
          **dict(run_id=twin, arch='tiny', num_classes=10, seed=2),
        }
      ),
      state={'model': _model(10, 0.0)},
      config={},
      metrics={},
    )
    with self.assertRaisesRegex(ValueError, f'2 run_ids.*{twin}.*more digits'):
      query.find(root, 'aaab')

  def test_incomplete_are_not_listed(self):
    root = self.root.parent / 'incomplete'
    _write(root, 'badnets')
    folder = root / 'attacked/cifar10/tiny'
    (folder / 'dddd000000000000').mkdir()
    hidden = folder / '.tmp-eeee000000000000-0-1-0'
    hidden.mkdir()
    (hidden / 'DONE').touch()
    assert [a.card.run_id for a in query.find(root, '*')] == [IDS['badnets']]


class StackTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _store(self, store):
    self.root = store

  def test_stack_in_order(self):
    found = query.find(self.root, 'attacked/cifar10')
    stacked = query.load_stack(found, jax.eval_shape(lambda: _model(10, 0.0)))
    chex.assert_shape(stacked['kernel'], (2, 2, 10))
    np.testing.assert_array_equal(stacked['kernel'][:, 0, 0], [1.0, 2.0])

  def test_odd_ones_are_listed(self):
    found = query.find(self.root, 'attacked')
    with self.assertRaisesRegex(
      ValueError,
      '3 checkpoints: 2 of them are tiny, 10 classes, cifar10, but '
      f'attacked/gtsrb/tiny/{IDS["gtsrb"]} .badnets. is tiny, 43 classes, '
      'gtsrb. Narrow the pattern',
    ):
      query.load_stack(found, _model(10, 0.0))

  def test_widths_differ(self):
    found = query.find(self.root, 'attacked/cifar10')
    card = found[0].card
    wide = cards.from_json(
      cards.to_json(card).replace(
        '"arch_options": {}', '"arch_options": {"width": 16}'
      )
    )
    query.check_alike([card, found[1].card])
    with self.assertRaisesRegex(ValueError, 'width=16'):
      query.check_alike([card, card, wide])

  def test_nothing_to_stack(self):
    with self.assertRaisesRegex(ValueError, 'at least one'):
      query.check_alike([])
