"""Attacks inside the training loop: what records say of them, who reads it."""

import functools

import numpy as np
from absl.testing import absltest, parameterized

from bdjax import zoo
from configs.attacks import bpp
from launch import attack, cli, defend, world
from tests.launch import toy

SHORT = {
  'data.num_train': 320,
  'train.epochs': 2,
  'method.squeeze_num': 3,
  'method.num_residuals': 20,
}


@functools.cache
def attacked() -> zoo.Artefact:
  config = toy.set_all(bpp.get_config('quick'), SHORT)
  with toy.compiled_once():
    return toy.quiet(attack.main, config, context())[0]


@functools.cache
def defended() -> zoo.Artefact:
  """Fine-tuned."""
  config = toy.ft_config(**{'method.epochs': 1})
  with toy.compiled_once():
    return toy.quiet(defend.main, config, context(), attacked().name)[0][0]


def context() -> cli.Context:
  return cli.Context(toy.folder('in_loop'))


def record_of(artefact: zoo.Artefact) -> dict:
  known = zoo.records.read(context().records)
  return next(r for r in known if r['run_id'] == artefact.card.run_id)


class InLoopTest(parameterized.TestCase):
  @parameterized.parameters(attacked, defended)
  def test_records_tell_of_slots_and_cross_triggers(self, made):
    record = record_of(made())
    self.assertIsNone(record['num_poison'])
    self.assertEqual(record['poison_ratio'], 0.2)
    self.assertEqual(record['cover_ratio'], 0.1)
    for name in ('cross_acc', 'cross_asr', 'c_acc', 'asr', 'r_acc'):
      self.assertIsInstance(record[name], float, name)

  def test_attacks_on_a_subset_have_no_cross_rates(self):
    metrics = zoo.load_metrics(toy.attacked())
    self.assertNotIn('cross_acc', metrics)
    self.assertIsNone(metrics['record']['cross_acc'])
    self.assertIsNone(metrics['record']['cover_ratio'])
    self.assertIsInstance(metrics['record']['num_poison'], int)

  def test_the_table_shows_cross_rates_where_there_are_any(self):
    attacked()
    table = zoo.tables.rows(zoo.records.read(context().records))
    self.assertIn('cross ASR [%]', zoo.tables.to_markdown(table))
    plain = zoo.tables.rows([zoo.load_metrics(toy.attacked())['record']])
    self.assertNotIn('cross', zoo.tables.to_markdown(plain))

  def test_the_attack_comes_back_from_the_store(self):
    artefact = attacked()
    here = world.of_card(artefact.card, context())
    victim = world.victim(artefact, here)
    self.assertEqual(victim.state.trigger['others'].shape, (20, 8, 8, 3))
    again = world.rates(here, victim.model, victim)
    metrics = zoo.load_metrics(artefact)
    for name in ('asr', 'cross_acc', 'cross_asr'):
      self.assertEqual(again[name], metrics[name])

  def test_what_is_handed_over_is_poisoned_all_over(self):
    artefact = attacked()
    here = world.of_card(artefact.card, context())
    victim = world.victim(artefact, here)
    images, labels = world.poisoned_train(here, victim, size=40)
    train = here.dataset.train
    changed = np.any(images != train.images, axis=(1, 2, 3))
    # Of each 40 images eight are poisoned and four are covers.
    self.assertEqual(changed.sum(), 96)
    relabelled = labels != train.labels
    self.assertBetween(relabelled.sum(), 30, 64)
    np.testing.assert_array_equal(relabelled & ~changed, False)
    where = np.flatnonzero(changed) // 80
    self.assertTrue(np.all(np.bincount(where, minlength=4) > 4))


if __name__ == '__main__':
  absltest.main()
