"""Registries and hyper-parameters from plain values."""

import dataclasses

from absl.testing import parameterized

from bdjax import registry, types


@types.hparams
class Hp:
  lr: float = 0.1
  eps: float | None = None
  steps: int = 3
  layers: tuple[str, ...] = ()


def info(**fields):
  base = dict(
    kind='defense',
    stage='post_training',
    category='fine_tuning',
    access='white_box',
    outputs='model',
    paper='A Paper',
    venue='NeurIPS',
    year=2024,
  )
  return registry.MethodInfo(**{**base, **fields})


ENTRIES = {
  'ft_sam': registry.Entry(lambda *_: None, Hp, info()),
  'sau': registry.Entry(lambda *_: None, Hp, info(year=2023)),
}


class GetTest(parameterized.TestCase):
  def test_known_names(self):
    self.assertIs(registry.get(ENTRIES, 'sau', 'defense'), ENTRIES['sau'])

  def test_an_unknown_name_suggests_the_nearest(self):
    with self.assertRaises(KeyError) as caught:
      registry.get(ENTRIES, 'ftsam', 'defense')
    self.assertEqual(
      str(caught.exception),
      "Unknown defense 'ftsam'. Did you mean 'ft_sam'? Known: ft_sam, sau.",
    )

  def test_list_methods_filters_by_fields(self):
    self.assertEqual(registry.list_methods(ENTRIES), ['ft_sam', 'sau'])
    self.assertEqual(registry.list_methods(ENTRIES, year=2023), ['sau'])
    self.assertEqual(registry.list_methods(ENTRIES, year=1999), [])


class MakeHparamsTest(parameterized.TestCase):
  def test_defaults(self):
    self.assertEqual(registry.make_hparams(Hp, {}), Hp())

  def test_none_keeps_the_default(self):
    got = registry.make_hparams(Hp, {'lr': None, 'steps': 5})
    self.assertEqual(got, Hp(steps=5))

  @parameterized.parameters('lr', 'eps')
  def test_integers_of_float_fields_become_floats(self, name):
    got = getattr(registry.make_hparams(Hp, {name: 1}), name)
    self.assertIsInstance(got, float)

  def test_integer_fields_stay_integers(self):
    self.assertIsInstance(registry.make_hparams(Hp, {'steps': 4}).steps, int)

  def test_lists_become_tuples_since_statics_are_hashed(self):
    got = registry.make_hparams(Hp, {'layers': ['a', 'b']})
    self.assertEqual(got.layers, ('a', 'b'))
    got = registry.make_hparams(Hp, {'layers': [[1, 2], [3, [4]]]})
    self.assertEqual(got.layers, ((1, 2), (3, (4,))))

  def test_an_unknown_hyper_parameter_suggests_the_nearest(self):
    with self.assertRaises(KeyError) as caught:
      registry.make_hparams(Hp, {'step': 1})
    self.assertEqual(
      str(caught.exception),
      "Hp has no hyper-parameter 'step'. Did you mean 'steps'? "
      'Known: eps, layers, lr, steps.',
    )


class MethodInfoTest(parameterized.TestCase):
  def test_facts_are_frozen_and_hashable(self):
    self.assertEqual(hash(info()), hash(info()))
    with self.assertRaises(dataclasses.FrozenInstanceError):
      info().year = 2000

  @parameterized.parameters(
    (dict(kind='defence'), "`kind='defence'` is not allowed.*'defense'"),
    (dict(stage='posttraining'), "Did you mean 'post_training'"),
    (dict(access='whitebox'), "Did you mean 'white_box'"),
    (dict(vmappable=('seeds', 'seed')), "Did you mean 'seeds'"),
  )
  def test_misspelt_facts_are_refused(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      info(**fields)
