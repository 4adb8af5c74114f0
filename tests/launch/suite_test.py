"""Several defenses on several models: who cannot be defended, and who can."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from ml_collections import config_dict

from bdjax import zoo
from configs.defenses import anp, suite
from launch import cli, defend, lineage, report, world
from tests.launch import toy

FAST = {'ft.method.epochs': 1, 'ft_sam.method.epochs': 1}


def config(methods='ft+ft_sam', **values):
  made = suite.get_config(f'quick,dataset=synthetic,methods={methods}')
  fast = {k: v for k, v in FAST.items() if k.split('.')[0] in made}
  return toy.set_all(made, fast | values)


def store(name, *seeds):
  """A store with the attacked models of some seeds, and their names."""
  for seed in seeds:
    root = toy.copy_of(toy.attacked(seed), name)
  return cli.Context(root)


def refused(context):
  return [r for r in zoo.records.read(context.records) if r['status'] != 'done']


class SuiteTest(parameterized.TestCase):
  def test_all_methods_are_known_and_keep_their_own_settings(self):
    made = suite.get_config('dataset=digits16')
    self.assertContainsSubset(
      {'ft', 'ft_sam', 'exact_purification'}, set(made.methods)
    )
    self.assertEqual(made.ft_sam.method.rho, 8.0)
    self.assertEqual(made.ft_sam.sampler, 'class_balanced')

  def test_unknown_method_is_named_with_the_nearest(self):
    with self.assertRaisesRegex(KeyError, "'ftsam'. Did you mean 'ft_sam'"):
      suite.get_config('methods=ft+ftsam')

  def test_methods_times_models(self):
    context = store('suite', 0, 1)
    made, text = toy.quiet(defend.main, config(), context, 'attacked')
    self.assertEqual(
      [a.card.method for a in made], ['ft', 'ft', 'ft_sam', 'ft_sam']
    )
    self.assertLen({a.card.parents for a in made}, 2)
    self.assertIn('2 models', text)
    again, text = toy.quiet(defend.main, config(), context, 'attacked')
    self.assertEqual([a.name for a in again], [a.name for a in made])
    self.assertEqual(text.count('finished before'), 4)

    costs = {
      r['defense']: r['grad_passes'] / r['steps']
      for r in zoo.records.read(context.records)
    }
    self.assertEqual(costs, {'ft': 1, 'ft_sam': 2})
    self._report(context)

  def _report(self, context):
    """The heat map stands in the report, and says what could not be done."""
    lost = zoo.record(
      run_id='0' * 16,
      stage='defend',
      method='clp',
      attack='badnets',
      defense='clp',
      status='unsupported',
      reason_text='no BatchNorm',
    )
    zoo.records.append(context.records, lost)
    _, printed = toy.quiet(report.main, None, context)
    text = (context.workdir / 'report.md').read_text(encoding='utf-8')
    self.assertIn('figures/heat.png', text)
    for said in (printed, text):
      self.assertIn('badnets + clp (unsupported): no BatchNorm', said)

  def test_a_sick_parent_does_not_stop_the_others(self):
    context = store('sick', 0, 1)
    sick, healthy = zoo.find(context.workdir, 'attacked', stage='attack')
    victim = world.victim(sick, world.of_card(sick.card, context))
    metrics = sick.card.metrics | {'finite': False}
    zoo.write(
      context.workdir,
      dataclasses.replace(sick.card, metrics=metrics),
      state={'model': victim.model, 'attack': victim.state},
      config={},
      metrics={},
      force=True,
    )
    made, _ = toy.quiet(defend.main, config('ft'), context, 'attacked')
    self.assertEqual([a.card.parents for a in made], [(healthy.card.run_id,)])
    (entry,) = refused(context)
    self.assertEqual(entry['status'], 'failed')
    self.assertEqual(entry['parents'], [sick.card.run_id])
    self.assertIn('not finite', entry['reason_text'])

  @parameterized.parameters((0.003, 'less than one'), (0.01, '3 images'))
  def test_reserve_that_is_too_small(self, ratio, told):
    context = store(f'reserve{ratio}', 0)
    asked = config('ft', **{'ft.clean_ratio': ratio})
    with self.assertRaisesRegex(ValueError, told):
      toy.quiet(defend.main, asked, context, 'attacked')
    (entry,) = refused(context)
    self.assertEqual(entry['status'], 'unsupported')
    self.assertIsNone(entry['ckpt_ref'])


class OracleTest(parameterized.TestCase):
  """ANP, whose published threshold is chosen on the triggered test set."""

  def run_anp(self, store_name, **method):
    context = store(store_name, 0, 1)
    values = {'num_steps': 4, 'batch_size': 16, 'lr': 20.0} | method
    made, _ = toy.quiet(
      defend.main,
      toy.set_all(
        anp.get_config('quick'), {f'method.{k}': v for k, v in values.items()}
      ),
      context,
      'attacked',
    )
    rows = {r['parents'][0]: r for r in zoo.records.read(context.records)}
    return made, rows

  @pytest.mark.slow
  def test_takes_the_least_asr_of_every_model_and_says_so(self):
    thresholds = (0.2, 0.9)
    asked = dict(selector='oracle', thresholds=thresholds, max_drop=1.0)
    _, found = self.run_anp('oracle', **asked)
    self.assertLen(found, 2)
    given = [self.run_anp(f'at-{t}', threshold=t)[1] for t in thresholds]
    for parent, row in found.items():
      self.assertTrue(row['oracle_used'])
      candidates = [row['base_asr'], *(one[parent]['asr'] for one in given)]
      self.assertEqual(row['asr'], min(candidates))
      self.assertFalse(given[0][parent]['oracle_used'])
    asrs = {one[parent]['asr'] for one in given for parent in found}
    self.assertGreater(len(asrs), 1)


class TrueTriggerTest(parameterized.TestCase):
  """Exact purification, which is handed the trigger of its victim."""

  def test_each_victim_by_its_own_trigger(self):
    context = store('trigger', 0, 1)
    made, text = toy.quiet(
      defend.main, config('exact_purification'), context, 'attacked'
    )
    self.assertLen({a.card.parents for a in made}, 2)
    self.assertEqual(text.count('exact_purification · 1 model'), 2)
    for row in zoo.records.read(context.records):
      self.assertTrue(row['oracle_used'])
      self.assertEqual(row['pack_size'], 1)
      self.assertGreater(row['base_asr'], 0.5)
      self.assertLess(row['asr'], 0.05)
      self.assertGreater(row['r_acc'], 0.9)

    # Whoever loads a defended model makes its defense anew.
    asked = config_dict.create(dataset='synthetic')
    families = lineage.families(asked, context, 'defended')
    self.assertLen(families, 2)
    for family in families:
      (child,) = family.children
      rates = world.rates(
        family.here, child.model, family.victim, classifier=child.classifier
      )
      metrics = zoo.load_metrics(child.artefact)
      self.assertEqual(rates['asr'], metrics['asr'])


class PoisonedTrainTest(parameterized.TestCase):
  def test_is_what_the_attacker_handed_over(self):
    artefact = toy.attacked()
    here = world.of_card(artefact.card, cli.Context(toy.folder('attacked')))
    victim = world.victim(artefact, here)
    images, labels = world.poisoned_train(here, victim, size=100)
    train, kind = here.dataset.train, np.asarray(victim.state.kind)
    is_clean = kind == 0
    np.testing.assert_array_equal(images[is_clean], train.images[is_clean])
    np.testing.assert_array_equal(labels[is_clean], train.labels[is_clean])
    self.assertGreater(np.sum(~is_clean), 0)
    self.assertTrue(np.all(labels[~is_clean] == 0))
    whole = victim.attack.poison(
      victim.state,
      {
        'image': jnp.asarray(train.images, jnp.float32) / 255,
        'label': jnp.asarray(train.labels),
        'index': jnp.arange(len(labels)),
        'mask': jnp.ones(len(labels), bool),
      },
      jax.random.key(0),
    )
    np.testing.assert_array_equal(
      images, np.rint(np.asarray(whole['image']) * 255)
    )
