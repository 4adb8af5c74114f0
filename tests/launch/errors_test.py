"""Mistakes at the command line and in Python: each message names the cure."""

import contextlib
import functools
import io
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
from absl.testing import absltest, parameterized

from bdjax import attacks, data, eval, keys, models, zoo
from configs.connectivity import linear
from configs.defenses import ft, ft_sam
from configs.existence import bec
from configs.reactivation import white_box
from configs.training import clean
from launch import (
  attack,
  cli,
  connect,
  defend,
  existence,
  reactivate,
  report,
  train,
  world,
)
from tests.launch import toy


def _told(fn, *args) -> tuple[int, str]:
  """Exit code and message of a launcher."""
  err = io.StringIO()
  with contextlib.redirect_stderr(err):
    code = cli.guarded(lambda: toy.quiet(fn, *args))
  return code, err.getvalue()


@functools.cache
def _store() -> cli.Context:
  """A store with a backdoored and a defended model, but no clean one."""
  store = toy.copy_of(toy.attacked(), 'errors')
  toy.copy_of(toy.defended(), 'errors')
  return cli.Context(store)


class CommandLineTest(parameterized.TestCase):
  def assert_refused(self, wanted: str, fn, *args):
    """Exit code 2 and one message, without a traceback, that fits."""
    code, message = _told(fn, *args)
    self.assertEqual(code, 2, message)
    self.assertRegex(message, re.compile(wanted, re.S))
    self.assertStartsWith(message, '\nerror: ')
    self.assertNotIn('Traceback', message)

  def test_unknown_defense(self):
    config = ft_sam.get_config('quick')
    config.name = 'ftsam'
    self.assert_refused(
      "Unknown defense 'ftsam'. Did you mean 'ft_sam'.* Known: anp, bnp",
      defend.main,
      config,
      _store(),
      'attacked',
    )

  def test_unknown_attack(self):
    config = toy.attack_config()
    config.name = 'badnet'
    self.assert_refused(
      "Unknown attack 'badnet'. Did you mean 'badnets'",
      attack.main,
      config,
      _store(),
    )

  def test_unknown_reactivation(self):
    self.make_clean()
    config = white_box.get_config('quick')
    config.name = 'whitebox'
    context = cli.Context(toy.folder('with-clean'))
    self.assert_refused(
      "Unknown reactivation 'whitebox'. Did you mean 'white_box'",
      reactivate.main,
      config,
      context,
      'defended',
    )

  def make_clean(self):
    store = toy.copy_of(toy.trained(), 'with-clean')
    toy.copy_of(toy.attacked(), store.name)
    toy.copy_of(toy.defended(), store.name)

  def test_unknown_data_set_and_network(self):
    self.assert_refused(
      "Unknown data set 'cifar1O'. Did you mean 'cifar10'",
      train.main,
      clean.get_config('dataset=cifar1O'),
      _store(),
    )
    config = toy.clean_config()
    config.arch.name = 'resnet81'
    self.assert_refused(
      "'resnet81'. Did you mean 'resnet18'", train.main, config, _store()
    )

  @parameterized.parameters(
    ('configs/defenses/ft_sam.py', 'method.rhoo', 'rho'),
    ('configs/attacks/badnets.py', 'method.poison_rato', 'poison_ratio'),
    ('configs/training/clean.py', 'train.epoch', 'epochs'),
  )
  def test_unknown_key(self, file, given, meant):
    wanted = f'Unknown config key \'{given.split(".")[-1]}\'.*"{meant}"'
    self.assert_refused(wanted, toy.parse, file, f'--config.{given}=1')

  def test_unknown_key_without_a_neighbour(self):
    wanted = "Unknown config key 'zzz'. The keys are those of the config file"
    self.assert_refused(
      wanted, toy.parse, 'configs/defenses/ft.py', '--config.zzz=1'
    )

  def test_wrong_type(self):
    file = 'configs/training/clean.py'
    self.assert_refused(
      '--config.seed=abc', toy.parse, file, '--config.seed=abc'
    )

  def test_percent_in_place_of_a_ratio(self):
    self.assert_refused(
      r'`clean_ratio=5\.0` is not in \(0, 1\].*use 0\.05 for 5 %',
      defend.main,
      ft.get_config('quick,clean_ratio=5'),
      _store(),
      'attacked',
    )
    config = toy.attack_config(**{'method.poison_ratio': 10.0})
    self.assert_refused(
      r'`poison_ratio=10\.0` is not in \(0, 1\].*use 0\.1 for 10 %',
      attack.main,
      config,
      _store(),
    )

  def test_target_label_out_of_range(self):
    self.assert_refused(
      '`target_label=4` is out of range: labels are 0 … 3 for 4 classes',
      attack.main,
      toy.attack_config(**{'method.target_label': 4}),
      _store(),
    )

  def test_missing_data_set(self):
    context = cli.Context(toy.folder('none'), str(toy.folder('empty')))
    self.assert_refused(
      f'python -m launch.prepare_data --dataset=cifar10 '
      f'--data_dir={toy.folder("empty")}',
      train.main,
      clean.get_config(),
      context,
    )
    self.assertEmpty(zoo.names(context.workdir))

  @parameterized.parameters(
    (defend, ft, 'attacked'),
    (existence, bec, 'defended'),
    (reactivate, white_box, 'defended'),
    (connect, linear, 'defended'),
  )
  def test_patterns(self, launcher, config, kind):
    config = config.get_config('quick')
    there = re.escape(toy.attacked().name)
    for pattern, wanted in (
      ('', f"--parents is empty.*such as --parents='{kind}/"),
      (f'{kind},', "empty pattern.*'attacked/"),
      (f'{kind}/cifar10/*', f"matches '{kind}/cifar10/.*There is:.*{there}"),
      (f'/{kind}', 'leaves the store; patterns are relative to its root'),
      ('clean/*', "Nothing matches 'clean/"),
    ):
      self.assert_refused(wanted, launcher.main, config, _store(), pattern)

  def test_wrong_kind_of_parents(self):
    self.assert_refused(
      "`stage='attack'`",
      defend.main,
      ft.get_config('quick'),
      _store(),
      'defended',
    )

  def test_empty_store(self):
    context = cli.Context(toy.folder('empty'))
    self.assert_refused(
      'no complete artefact.*Train one first, or give another --workdir',
      defend.main,
      ft.get_config('quick'),
      context,
      'attacked',
    )
    self.assert_refused('There are no records', report.main, None, context)

  @parameterized.parameters(
    (defend, ft, 'attacked'), (connect, linear, 'defended')
  )
  def test_config_of_another_data_set(self, launcher, config, pattern):
    self.assert_refused(
      "dataset='gtsrb'.*trained on 'synthetic'.*add ':dataset=synthetic'",
      launcher.main,
      config.get_config('dataset=gtsrb'),
      _store(),
      pattern,
    )

  @parameterized.parameters((existence, bec), (reactivate, white_box))
  def test_missing_clean_model(self, launcher, config):
    args = (config.get_config('quick'), _store(), 'defended')
    wanted = 'python -m launch.train --config=configs/training/clean.py:'
    self.assert_refused(re.escape(wanted), launcher.main, *args)
    command = re.search(
      r'--config=(\S+) --workdir=(\S+)', _told(launcher.main, *args)[1]
    )
    # The command it names trains the model that is missing.
    self.assertEqual(command.group(2), str(_store().workdir))
    here = world.of_config(toy.parse(command.group(1)), _store())
    card = toy.attacked().card
    self.assertEqual(here.dataset_id, card.dataset_id)
    self.assertEqual(
      (here.arch, here.arch_options), (card.arch, card.arch_options)
    )

  def test_unlike_checkpoints(self):
    store = toy.copy_of(toy.attacked(), 'unlike')
    narrow = toy.attack_config(**{'arch.width': 4, 'train.epochs': 1})
    with toy.compiled_once():
      toy.quiet(attack.main, narrow, cli.Context(store))
    code, message = _told(
      defend.main, ft.get_config('quick'), cli.Context(store), 'attacked'
    )
    self.assertEqual(code, 2)
    for part in ('Cannot stack 2', 'tiny, width=4', 'Narrow the pattern'):
      self.assertIn(part, message)

  def test_other_data_of_the_same_name(self):
    rng = np.random.default_rng(0)
    folder = toy.folder('arrays')
    for seed, name in enumerate(('one', 'two')):
      _write_arrays(folder / name, rng, seed)
    store = toy.folder('arrays-store')
    made = toy.attack_config(**{'train.epochs': 1})
    made.data.name = 'arrays'
    made.data.num_train = 32
    with toy.compiled_once():
      toy.quiet(attack.main, made, cli.Context(store, str(folder / 'one')))
    self.assert_refused(
      'other data of the name arrays.*Point --data_dir',
      defend.main,
      ft.get_config('dataset=arrays'),
      cli.Context(store, str(folder / 'two')),
      'attacked',
    )

  @parameterized.parameters(0, 7)
  def test_truncated_checkpoint(self, size):
    store = toy.copy_of(toy.attacked(), f'cut-{size}')
    state = store / toy.attacked().name / 'state' / 'model'
    files = [path for path in state.rglob('*') if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, size)
    self.assert_refused(
      'cannot be read.*delete the folder or re-run.*--force',
      defend.main,
      ft.get_config('quick'),
      cli.Context(store),
      'attacked',
    )

  def test_damaged_card(self):
    store = toy.copy_of(toy.attacked(), 'card')
    card = store / toy.attacked().name / 'card.json'
    card.write_text(card.read_text().replace('badnets', 'blended'))
    self.assert_refused(
      'card.json.*--force',
      defend.main,
      ft.get_config('quick'),
      cli.Context(store),
      'attacked',
    )

  def test_a_failure_of_ours_is_not_hidden(self):
    with self.assertRaises(ZeroDivisionError):
      cli.guarded(lambda: 1 / 0)
    with self.assertRaises(AttributeError):
      cli.guarded(lambda: None.missing)
    with self.assertRaises(KeyError):
      cli.guarded(lambda: {}['missing'])

  def test_interruption(self):
    def interrupted():
      raise KeyboardInterrupt

    code, message = _told(interrupted)
    self.assertEqual(code, 130)
    self.assertIn('the same command goes on', message)


class ProcessTest(absltest.TestCase):
  def test_exit_codes_and_messages(self):
    module = [sys.executable, '-m']
    runs = {
      'Did you mean "rho"': [
        'launch.defend',
        '--config=configs/defenses/ft_sam.py',
        '--config.method.rhoo=1',
      ],
      'python -m launch.prepare_data --dataset=cifar10': [
        'launch.train',
        '--config=configs/training/clean.py',
        f'--data_dir={toy.folder("empty")}',
      ],
      "Did you mean 'configs/defenses/ft.py'": [
        'launch.defend',
        '--config=configs/defenses/fta.py',
      ],
      "flag 'parent'. Did you mean: parents": [
        'launch.defend',
        '--parent=attacked',
      ],
    }
    started = [
      subprocess.Popen(
        [*module, *arguments, f'--workdir={toy.folder("process")}'],
        cwd=toy.HOME,
        env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for arguments in runs.values()
    ]
    for wanted, process in zip(runs, started, strict=True):
      _, message = process.communicate(timeout=120)
      self.assertEqual(process.returncode, 2, message)
      self.assertIn(wanted, message)
      self.assertNotIn('Traceback', message)
    self.assertFalse(pathlib.Path(toy.folder('process')).exists())


class PythonTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.data = data.load('synthetic', num_train=8, num_test=8)
    self.net = models.make('tiny', self.data.spec)
    self.attack = attacks.badnets(self.data.spec)

  def test_images_of_gray_levels(self):
    gray = self.data.test.images.astype(np.float32)
    state = self.attack.init(jax.random.key(0), *self.data.train)
    model = jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype),
      jax.eval_shape(self.net.init, jax.random.key(0)),
    )
    wanted = r'must lie in \[0, 1\].*max 2\d\d.*data\.to_float'
    with self.assertRaisesRegex(ValueError, wanted):
      self.attack.stamp(state, gray, jax.random.key(0), np.arange(8))
    with self.assertRaisesRegex(TypeError, r'uint8.*data\.to_float'):
      self.net.apply(model, self.data.test.images)
    with self.assertRaisesRegex(TypeError, 'float32.*uint8'):
      eval.evaluate(self.net, model, gray, self.data.test.labels)

  def test_ratio_in_percent(self):
    with self.assertRaisesRegex(ValueError, r'use 0\.05 for 5 %'):
      data.reserve_clean(keys.root(0), self.data.train.labels, 5)

  def test_untyped_key(self):
    with self.assertRaisesRegex(TypeError, r'jax\.random\.key\(seed\)'):
      self.attack.init(np.zeros(2, np.uint32), *self.data.train)


def _write_arrays(folder, rng, seed):
  """A data set of 40 + 8 images of 4 classes."""
  folder.mkdir(parents=True)
  for split, count in (('train', 40), ('test', 8)):
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    labels = np.roll(np.arange(count) % 4, seed)
    np.save(folder / f'{split}_images.npy', images)
    np.save(folder / f'{split}_labels.npy', labels)


if __name__ == '__main__':
  absltest.main()
