"""Crafted assets in a run: made once, in its identity, not needed later."""

import functools

import numpy as np
from absl.testing import parameterized

from bdjax import zoo
from configs.attacks import badnets, lc, lf, trojannn
from configs.training import robust
from launch import assets, attack, cli, defend, lineage, train, world
from tests.launch import toy

SHORT = {
  'data.num_train': 320,
  'train.epochs': 3,
  'clean.train.epochs': 3,
}
OF = {
  'lf': (lf, {'method.num_passes': 2, 'method.num_images': 40}),
  'trojannn': (trojannn, {'method.steps': 20}),
  'lc': (lc, {'method.steps': 5, 'clean.adversary.num_steps': 0}),
}


def context(**kwargs):
  return cli.Context(toy.folder('crafted'), **kwargs)


def config_of(name, **values):
  module, own = OF[name]
  return toy.set_all(module.get_config('quick'), SHORT | own | values)


@functools.cache
def attacked(name):
  """The artefact of a short run, and what it printed."""
  with toy.compiled_once():
    return toy.quiet(attack.main, config_of(name), context())


def made(config, **kwargs) -> assets.Assets:
  here = world.of_config(config, context())
  return toy.quiet(assets.of_run, config, context(**kwargs), here)[0]


class AssetsTest(parameterized.TestCase):
  @parameterized.parameters(*OF)
  def test_crafts_once_and_finds_again(self, name):
    artefact, out = attacked(name)
    self.assertIn(f'of {name}: crafted with clean/synthetic/tiny/', out)
    folder = context().workdir / 'assets'
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = made(config_of(name))
    after = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    self.assertEqual(before, after)
    for key, facts in artefact.card.hparams['assets'].items():
      array = again.arrays[key]
      self.assertEqual(facts['shape'], list(array.shape))
      self.assertEqual(facts['dtype'], array.dtype.name)
      self.assertTrue((folder / f'{facts["digest"]}.npz').is_file())

  def test_one_clean_model_for_all(self):
    runs = {attacked(name)[0].card.hparams['clean_model'] for name in OF}
    self.assertLen(runs, 1)
    artefact = zoo.open(context().workdir, runs.pop())
    self.assertEqual((artefact.card.stage, artefact.card.seed), ('clean', 0))
    self.assertEqual(artefact.card.data['subset']['num_train'], 320)

  @parameterized.parameters(*OF)
  def test_a_victim_is_rebuilt_without_its_assets(self, name):
    artefact, _ = attacked(name)
    store = toy.copy_of(artefact, f'alone-{name}')
    self.assertFalse((store / 'assets').exists())
    here = world.of_card(artefact.card, context())
    alone = zoo.open(store, artefact.card.run_id)
    victim = world.victim(alone, here)
    rates = world.rates(here, victim.model, victim)
    for rate in ('c_acc', 'asr', 'r_acc'):
      self.assertEqual(rates[rate], artefact.card.metrics[rate])

  @parameterized.parameters(*OF)
  def test_can_be_defended(self, name):
    artefact, _ = attacked(name)
    store = toy.copy_of(artefact, f'defended-{name}')
    with toy.compiled_once():
      found, _ = toy.quiet(
        defend.main,
        toy.ft_config(**{'method.epochs': 1}),
        cli.Context(store),
        artefact.name,
      )
    self.assertEqual(found[0].card.parents, (artefact.card.run_id,))
    self.assertIsNotNone(found[0].card.metrics['asr'])

  def test_other_crafting_is_another_run(self):
    first = made(config_of('trojannn'))
    other = made(config_of('trojannn', **{'method.steps': 7}))
    self.assertNotEqual(first.settings, other.settings)
    # What crafting does not read, it does not depend on.
    same = made(config_of('trojannn', **{'method.poison_ratio': 0.2}))
    self.assertEqual(first.settings, same.settings)

  def test_a_file_of_ones_own_is_taken_in_place_of_crafting(self):
    folder = self.create_tempdir().full_path
    pattern = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.save(f'{folder}/own.npy', pattern)
    np.savez(f'{folder}/own.npz', pattern=pattern, other=pattern + 1)
    got = [
      made(config_of('lf', **{'assets.pattern': f'{folder}/own.{kind}'}))
      for kind in ('npy', 'npz')
    ]
    for one in got:
      np.testing.assert_array_equal(one.arrays['pattern'], pattern)
      self.assertNotIn('clean_model', one.settings)
    self.assertEqual(got[0].settings, got[1].settings)
    np.save(f'{folder}/own.npy', pattern + 1)
    config = config_of('lf', **{'assets.pattern': f'{folder}/own.npy'})
    self.assertNotEqual(made(config).settings, got[0].settings)

  def test_what_a_crafter_takes_is_part_of_the_recipe(self):
    folder = self.create_tempdir().full_path
    mask = np.zeros((8, 8), np.uint8)
    mask[:2] = 255
    np.save(f'{folder}/mask.npy', mask)
    config = config_of(
      'trojannn', **{'assets.mask_image': f'{folder}/mask.npy'}
    )
    got = made(config)
    self.assertEqual(set(got.settings['assets']), {'mark', 'mask_image'})
    self.assertFalse(got.arrays['mark'][2:].any())
    self.assertTrue(got.arrays['mark'][:2].all())
    plain = made(config_of('trojannn')).settings['assets']['mark']
    self.assertNotEqual(got.settings['assets']['mark'], plain)

  def test_substitutes_and_plain_attacks_craft_nothing(self):
    field = config_of('lf', **{'method.pattern': 'smooth_field'})
    self.assertEqual(made(field), assets.Assets({}, {}))
    plain = toy.set_all(badnets.get_config('quick'), {'data.num_train': 320})
    self.assertEqual(made(plain), assets.Assets({}, {}))

  def test_force_crafts_anew_but_trains_nothing(self):
    attacked('trojannn')
    clean = attacked('trojannn')[0].card.hparams['clean_model']
    written = zoo.open(context().workdir, clean).card.time_utc
    forced = made(config_of('trojannn'), force=True)
    self.assertEqual(forced.settings, made(config_of('trojannn')).settings)
    now = zoo.open(context().workdir, clean).card.time_utc
    self.assertEqual(now, written)

  def test_without_a_recipe_for_a_clean_model(self):
    config = config_of('lf')
    del config.clean
    with self.assertRaisesRegex(ValueError, 'no `clean`.*configs/attacks/lf'):
      made(config)


class RobustTest(parameterized.TestCase):
  def test_is_no_clean_model_to_compare_with(self):
    store = cli.Context(toy.folder('robust'))
    config = toy.set_all(
      robust.get_config('quick'),
      {
        'data.num_train': 320,
        'train.epochs': 2,
        'adversary.num_steps': 2,
      },
    )
    with toy.compiled_once():
      artefact, _ = toy.quiet(train.main, config, store)
    self.assertEqual(artefact.card.method, 'robust')
    self.assertEqual(artefact.card.hparams['adversary']['num_steps'], 2)
    here = world.of_config(config, store)
    with self.assertRaisesRegex(ValueError, 'there is none. Train one'):
      lineage.clean_model(store, here, 'launch.existence')
