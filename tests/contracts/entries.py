"""What every entry of a registry must say of itself, whatever the room."""

import dataclasses
import doctest
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl.testing import parameterized

from bdjax import registry

HEADINGS = (
  'Access:',
  'Space:',
  'BN:',
  'Guarantees:',
  'Divergences:',
  'Cost:',
  'Args:',
  'Returns:',
  'Raises:',
  'Example:',
  'References:',
)


def contract(
  entries: Mapping[str, registry.Entry],
  hparams: Callable[[str], Any],
  *,
  kind: str,
  filled: Sequence[str],
  mistake: tuple[str, str] = ('no_such_field', 'has no hyper-parameter'),
) -> type[parameterized.TestCase]:
  """A test case, to be inherited, with the tests of every entry.

  Args:
    entries: the registry.
    hparams: name -> hyper-parameters other than the defaults.
    kind: that of every entry.
    filled: fields of `info` that must not be empty.
    mistake: a wrong hyper-parameter and what the error says of it.
  """

  class Contract(parameterized.TestCase):
    @parameterized.product(name=tuple(entries))
    def test_hparams_serialize_and_rebuild(self, name):
      cls, hp = entries[name].hparams, hparams(name)
      text = json.dumps(dataclasses.asdict(hp))
      self.assertEqual(registry.make_hparams(cls, json.loads(text)), hp)
      wrong, message = mistake
      with self.assertRaisesRegex(KeyError, message):
        registry.make_hparams(cls, {wrong: 0.1})

    @parameterized.product(name=tuple(entries))
    def test_hparams_are_documented(self, name):
      cls = entries[name].hparams
      documented = ''.join(base.__doc__ or '' for base in cls.__mro__[:-1])
      for field in dataclasses.fields(cls):
        self.assertIn(f'{field.name}: ', documented)

    @parameterized.product(name=tuple(entries))
    def test_info_is_complete(self, name):
      info = entries[name].info
      self.assertEqual((info.kind, info.paradigm), (kind, 'backdoor'))
      for field in ('category', 'subcategory', 'paper', 'venue', *filled):
        self.assertNotEmpty(getattr(info, field), field)
      self.assertBetween(info.year, 2017, 2030)
      self.assertEqual(info.status, 'implemented')

    @parameterized.product(name=tuple(entries))
    def test_docstring_has_all_headings(self, name):
      factory = entries[name].make
      module = sys.modules[factory.__module__]
      docs = f'{module.__doc__}\n{factory.__doc__}'
      for heading in HEADINGS:
        self.assertIn(heading, docs)

    @parameterized.product(name=tuple(entries))
    def test_docstring_has_an_example(self, name):
      module = sys.modules[entries[name].make.__module__]
      found = doctest.DocTestFinder().find(module)  # run with the doctests
      self.assertTrue(any(test.examples for test in found))

  return Contract
