"""A study on the toy world: every instrument, its report, other pairs."""

import contextlib
import functools
import io
import shutil

import numpy as np
import pytest
from absl.testing import flagsaver, parameterized
from PIL import Image

from bdjax import zoo
from configs.connectivity import linear
from configs.existence import shares
from configs.reactivation import ablation, controls, qra
from configs.studies import dormant
from launch import cli, connect, existence, reactivate, report, study
from tests.launch import toy

_INSTRUMENTS = {
  'white_box',
  'black_box',
  'transfer',
  'retuning_attack',
  'qra',
  'bec',
  'linear',
}
_NUMBERS = (
  'bec reactivated_asr control_clean_input_asr control_clean_model_asr '
  'white_box_asr black_box_asr transfer_asr qra_asr p_asr retuned_clean_asr '
  'barrier_clean backdoor_error_auc'
).split()


def _context() -> cli.Context:
  return cli.Context(toy.folder('study'))


def _config():
  """The study's settings, cut short."""
  config = dormant.get_config('quick,methods=ft+ft_sam,attacks=blended')
  config.reactivations.qra.method.epochs = 5
  config.reactivations.white_box.method.outer_epochs = 3
  config.reactivations.black_box.method.num_queries = 40
  return config


def _study():
  """Runs the study; returns its rows and what it printed."""
  return _run(study.main, _config(), _context())


def _run(main, *args):
  with toy.compiled_once(), contextlib.redirect_stdout(io.StringIO()):
    return toy.quiet(main, *args)


@functools.cache
def _first():
  return _study()


def _copy(name: str) -> cli.Context:
  _first()
  folder = toy.folder(name)
  shutil.copytree(_context().workdir, folder)
  return cli.Context(folder)


class StudyTest(parameterized.TestCase):
  def test_every_cell_has_every_number(self):
    rows = [row for row in _first()[0] if row['stage'] == 'defend']
    self.assertLen(rows, 2)
    for row in rows:
      for name in _NUMBERS:
        self.assertBetween(row[name], 0, 1, name)
      self.assertEqual(row['reactivated_by'], 'white_box')

  @pytest.mark.slow
  def test_parts_of_stages_make_what_the_whole_makes(self):
    context = cli.Context(toy.folder('parts'))
    for stage in study.STAGES:
      for other in (0, 1):  # claims every second piece
        folder = self.create_tempdir(f'{stage}{other}')
        for i in range(other, 20, 2):
          folder.create_file(str(i))
        with flagsaver.flagsaver(part=f'{stage}:{folder.full_path}'):
          rows, _ = _run(study.main, _config(), context)
        self.assertEqual(rows, [])
    records = zoo.records.read(context.records)
    with flagsaver.flagsaver(part=None):
      rows, _ = _run(study.main, _config(), context)
    self.assertLen(zoo.records.read(context.records), len(records))
    names = [name for name, *_ in zoo.tables.columns(rows) if name != 'seconds']
    of = lambda rows: [[row.get(name) for name in names] for row in rows]
    self.assertEqual(of(rows), of(_first()[0]))

  def test_unknown_stage(self):
    folder = self.create_tempdir().full_path
    with (
      flagsaver.flagsaver(part=f'train_all:{folder}'),
      self.assertRaisesRegex(ValueError, 'train.*defend.*measure'),
    ):
      study.main(_config(), _context())

  def test_every_instrument_has_measured_every_model(self):
    records = zoo.records.read(_context().records)
    found = {
      (r['method'], r['parents'][0])
      for r in records
      if r['stage'] in ('existence', 'reactivate', 'connect')
    }
    self.assertLen(found, 2 * len(_INSTRUMENTS))
    self.assertEqual({method for method, _ in found}, _INSTRUMENTS)

  def test_retuned_models_are_models_and_parents_of_qra(self):
    root = _context().workdir
    retuned = zoo.find(root, 'reactivated', method='retuning_attack')
    self.assertLen(retuned, 2)
    imitated = {
      parent
      for artefact in zoo.find(root, 'reactivated', method='qra')
      for parent in artefact.card.parents
    }
    for artefact in retuned:
      self.assertIn('model', artefact.card.state)
      self.assertIn(artefact.card.run_id, imitated)

  def test_no_model_is_its_own_surrogate(self):
    root = _context().workdir
    for artefact in zoo.find(root, 'reactivated', method='transfer'):
      defended, _, _, *surrogates = artefact.card.parents
      self.assertLen(surrogates, 1)
      self.assertNotIn(defended, surrogates)

  def test_report_sums_up_and_draws(self):
    rows, out = _first()
    root = _context().workdir
    text = (root / 'report.md').read_text()
    for part in ('## In short', '## Published findings', 'P-ASR', 'To keep in'):
      self.assertIn(part, text)
    for name in ('queries', 'retuning', 'reactivation', 'paths'):
      with Image.open(root / 'figures' / f'{name}.png') as image:
        self.assertGreater(np.asarray(image.convert('L')).std(), 5, name)
      self.assertIn(f'figures/{name}.png', text)
    self.assertIn('the study took', out)
    self.assertLen({row['model'] for row in rows}, len(rows))

  def test_second_run_does_nothing(self):
    _first()
    lines = _context().records.read_text()
    _, out = _study()
    self.assertEqual(_context().records.read_text(), lines)
    self.assertEqual(out.count('finished before'), len(lines.splitlines()))


class FurtherTest(parameterized.TestCase):
  def test_other_pairs_are_variants(self):
    context = _copy('pairs')
    for ends in ('defended:retuned', 'clean:defended'):
      config = linear.get_config('quick')
      config.ends, config.num_points = ends, 3
      made, _ = _run(connect.main, config, context, 'defended')
      self.assertLen(made, 2)
    records = zoo.records.read(context.records)
    found = {r['variant'] for r in records if r['stage'] == 'connect'}
    self.assertEqual(found, {None, 'defended:retuned', 'clean:defended'})
    rows, _ = _run(report.main, None, context)
    auc = lambda rows: [r.get('backdoor_error_auc') for r in rows]
    self.assertEqual(auc(rows), auc(_first()[0]))

  @parameterized.parameters(
    ('attacked:clean', 'an end depends on the defense'),
    ('defended', 'is no pair'),
    ('defended:cleen', "Did you mean 'clean'"),
  )
  def test_pairs_that_cannot_be_meant(self, ends, message):
    config = linear.get_config('quick')
    config.ends = ends
    with self.assertRaisesRegex(ValueError, message):
      connect.main(config, _copy(f'bad-{ends}'), 'defended')

  @pytest.mark.slow
  def test_controls_compare_mechanism_and_noise(self):
    context = _copy('controls')
    config = controls.get_config('quick')
    config.method.num_queries, config.noise = 20, (0.0, 0.06)
    made, _ = _run(reactivate.main, config, context, 'defended')
    metrics = zoo.load_metrics(made[0])
    noise = metrics['noise']
    for name in ('rba', 'guaa'):
      self.assertBetween(metrics['mechanism'][name], 0, 1)
      self.assertLen(noise[name], 2)
    # Without noise they are the rates of the attack itself.
    self.assertAlmostEqual(
      metrics['noise']['rba'][0], metrics['reactivated_asr'], delta=0.01
    )
    self.assertAlmostEqual(
      metrics['noise']['guaa'][0],
      metrics['control_clean_input_asr'],
      delta=0.01,
    )
    self.assertLen([name for name in metrics if name.endswith('_asr')], 6)

  @pytest.mark.slow
  def test_ablations_are_variants_and_drawn(self):
    context = _copy('ablations')
    config = ablation.get_config('quick,of=mode')
    config.method.outer_epochs = 2
    made, _ = _run(reactivate.main, config, context, 'defended')
    self.assertLen(made, 6)
    config = shares.get_config('quick')
    _run(existence.main, config, context, 'defended')
    rows, _ = _run(report.main, None, context)
    self.assertEqual(
      [r.get('transfer_asr') for r in rows],
      [r.get('transfer_asr') for r in _first()[0]],
    )
    self.assertTrue((context.workdir / 'figures/ablations.png').is_file())

  def test_qra_without_a_retuned_twin_names_the_command(self):
    context = _copy('twinless')
    for artefact in zoo.find(
      context.workdir, 'reactivated', method='retuning_attack'
    ):
      shutil.rmtree(artefact.path)
    with self.assertRaisesRegex(ValueError, 'retuning_attack.py:dataset=synth'):
      reactivate.main(qra.get_config('quick'), context, 'defended')
