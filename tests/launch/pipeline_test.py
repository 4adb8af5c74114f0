"""The quickstart on the toy world, from nothing to the report."""

import contextlib
import csv
import functools
import io
import shutil

import numpy as np
from absl.testing import absltest, flagsaver, parameterized
from PIL import Image

from bdjax import zoo
from configs import quickstart as quickstart_config
from configs.attacks import badnets
from configs.defenses import ft
from launch import attack, cli, connect, defend, quickstart, report
from tests.launch import toy

_STAGES = {
  'clean': ['clean'],
  'attack': ['badnets'],
  'defend': ['ft', 'ft_sam'],
  'existence': ['bec', 'bec'],
  'reactivate': ['white_box', 'white_box'],
  'connect': ['linear', 'linear'],
}
_EVERYWHERE = (
  'run_id time_utc code_version jax_version device_kind stage method '
  'config_digest parents dataset dataset_id arch seed status finite '
  'oracle_used ckpt_ref'
).split()
_OF_STAGE = {
  'clean': 'c_acc n_clean_test steps epochs compile_s run_s examples_per_s',
  'attack': 'attack label_mode target_label poison_ratio num_poison c_acc asr '
  'r_acc n_triggered_test steps epochs compile_s run_s examples_per_s',
  'defend': 'attack label_mode target_label poison_ratio defense clean_ratio '
  'num_clean reserve_id c_acc asr r_acc der rir base_c_acc base_asr '
  'base_r_acc steps exec_mode pack_size compile_s run_s examples_per_s',
  'existence': 'attack defense bec bec_raw bec_per_layer cka_defended '
  'cka_clean run_s',
  'reactivate': 'attack defense reactivated_asr control_clean_input_asr '
  'control_clean_model_asr eps norm reactivation_budget run_s',
  'connect': 'attack defense barrier_clean bn_reestimated run_s',
}
_KINDS = {
  'clean': 'clean',
  'attack': 'attacked',
  'defend': 'defended',
  'reactivate': 'reactivated',
  'existence': 'measured',
  'connect': 'measured',
}


def _context(**kwargs) -> cli.Context:
  return cli.Context(toy.folder('pipeline'), **kwargs)


def _quickstart():
  """Runs the quickstart; returns its rows and what it printed."""
  config = quickstart_config.get_config('quick')
  with toy.compiled_once(), contextlib.redirect_stdout(io.StringIO()):
    return toy.quiet(quickstart.main, config, _context())


@functools.cache
def _first() -> tuple:
  """The first run's rows and output, and its records."""
  rows, out = _quickstart()
  return rows, out, zoo.records.read(_context().records)


def _lines() -> list[str]:
  return _context().records.read_text().splitlines()


def _times() -> dict[str, int]:
  """When each file of an artefact was written."""
  root = _context().workdir
  return {
    str(path): path.stat().st_mtime_ns
    for name in zoo.names(root)
    for path in (root / name).rglob('*')
  }


class PipelineTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.rows, self.out, self.records = _first()
    self.root = _context().workdir

  def of_stage(self, stage):
    return [r for r in self.records if r['stage'] == stage]

  def test_one_record_per_model_and_method(self):
    found = {
      stage: sorted(r['method'] for r in self.of_stage(stage))
      for stage in _STAGES
    }
    self.assertEqual(found, _STAGES)
    run_ids = [r['run_id'] for r in self.records]
    self.assertLen(set(run_ids), len(run_ids))
    self.assertLen(run_ids, sum(map(len, _STAGES.values())))

  @parameterized.parameters(*_STAGES)
  def test_records_are_filled(self, stage):
    for record in self.of_stage(stage):
      self.assertSameElements(record, zoo.records.FIELDS)
      for name in [*_EVERYWHERE, *_OF_STAGE[stage].split()]:
        self.assertIsNotNone(record[name], f'{stage} {name}')
      for name in zoo.records.FRACTIONS & set(record):
        if isinstance(record[name], float):
          self.assertBetween(record[name], 0, 1, name)
      self.assertTrue(record['finite'])
      self.assertGreater(record['run_s'], 0)

  @parameterized.parameters(*_STAGES)
  def test_every_record_has_an_artefact(self, stage):
    for record in self.of_stage(stage):
      artefact = zoo.open(self.root, record['run_id'])
      zoo.verify(artefact)
      self.assertEqual(artefact.name, record['ckpt_ref'])
      self.assertEqual(artefact.card.kind, _KINDS[stage])
      self.assertEqual(artefact.card.stage, stage)
      self.assertEqual(artefact.card.config_digest, record['config_digest'])
      self.assertIn('seed', zoo.load_config(artefact))
      # A measurement of numbers has arrays in the place of weights.
      has_state = artefact.card.kind != 'measured'
      self.assertEqual(bool(artefact.card.state), has_state)

  def test_nothing_else_is_left(self):
    self.assertLen(zoo.names(self.root), len(self.records))
    self.assertEmpty(list((self.root / '.progress').glob('*')))

  def test_parents_are_known(self):
    stage_of = {r['run_id']: r['stage'] for r in self.records}
    roles = {
      'clean': [],
      'attack': [],
      'defend': ['attack'],
      'existence': ['defend', 'attack', 'clean'],
      'reactivate': ['defend', 'attack', 'clean'],
      'connect': ['defend', 'attack'],
    }
    for record in self.records:
      found = [stage_of[parent] for parent in record['parents']]
      self.assertEqual(found, roles[record['stage']])

  def test_defenses_are_rated_against_their_parent(self):
    (victim,) = self.of_stage('attack')
    for record in self.of_stage('defend'):
      self.assertEqual(record['base_asr'], victim['asr'])
      self.assertEqual(record['base_c_acc'], victim['c_acc'])
      drop = max(0, victim['asr'] - record['asr'])
      loss = max(0, victim['c_acc'] - record['c_acc'])
      self.assertAlmostEqual(record['der'], (drop - loss + 1) / 2)

  def test_coefficients_are_consistent(self):
    for record in self.of_stage('existence'):
      self.assertEqual(record['bec'], min(1, max(0, record['bec_raw'])))
      mean = np.mean(record['bec_per_layer'])
      self.assertAlmostEqual(mean, record['bec_mean_of_ratios'], places=5)
      self.assertLen(record['cka_clean'], len(record['bec_per_layer']))

  def test_rows_join_all_stages(self):
    names = ['clean', 'badnets', 'badnets + ft', 'badnets + ft_sam']
    self.assertEqual([row['model'] for row in self.rows], names)
    for row in self.rows:
      self.assertGreater(row['seconds'], 0)
    for row in self.rows[2:]:
      for name in ('bec', 'reactivated_asr', 'control_clean_model_asr'):
        self.assertIsNotNone(row[name])

  def test_gallery_shows_the_attacked_models(self):
    context = _copy('gallery')
    with flagsaver.flagsaver(gallery=True):
      toy.quiet(report.main, None, context)
    with Image.open(context.workdir / 'figures' / 'gallery.png') as picture:
      image = np.asarray(picture.convert('L'))
    self.assertGreater(np.ptp(image), 200)
    text = (context.workdir / 'report.md').read_text(encoding='utf-8')
    self.assertIn('(figures/gallery.png)', text)

  def test_report_and_table(self):
    text = (self.root / 'report.md').read_text(encoding='utf-8')
    for row in self.rows:
      self.assertIn(f'| {row["model"]} |', text)
    self.assertIn('Controls:', text)
    with (self.root / 'table.csv').open(encoding='utf-8') as file:
      table = list(csv.DictReader(file))
    self.assertEqual([r['run_id'] for r in table], _ids(self.rows))
    for row, cells in zip(self.rows, table, strict=True):
      self.assertEqual(float(cells['c_acc']), row['c_acc'])
      missing = row['asr'] is None
      self.assertEqual(cells['asr'], '' if missing else str(row['asr']))

  def test_figures_show_something(self):
    text = (self.root / 'report.md').read_text(encoding='utf-8')
    found = sorted((self.root / 'figures').glob('*.png'))
    names = [path.name for path in found]
    self.assertEqual(names, ['images.png', 'paths.png', 'reactivation.png'])
    for path in found:
      self.assertIn(f'figures/{path.name}', text)
      with Image.open(path) as image:
        pixels = np.asarray(image.convert('L'))
      self.assertGreater(min(pixels.shape), 200)
      self.assertGreater(pixels.std(), 5)

  def test_output_names_what_was_made(self):
    self.assertNotIn('finished before', self.out)
    for word in ('C-Acc', 'ASR', 'BEC', 'controls', 'barrier', 'report:'):
      self.assertIn(word, self.out)


class AgainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    _first()

  def test_second_run_does_nothing(self):
    lines, times = _lines(), _times()
    rows, out = _quickstart()
    self.assertEqual(_lines(), lines)
    self.assertEqual(_times(), times)
    self.assertEqual(_ids(rows), _ids(_first()[0]))
    self.assertEqual(out.count('finished before'), len(_first()[2]))

  def test_lost_records_come_back_from_the_artefacts(self):
    lines = _lines()
    for left in (lines[:3] + lines[4:], lines[1:2], []):
      _write(left)
      _quickstart()
      self.assertEqual(_lines()[: len(left)], left)
      self.assertCountEqual(_lines(), lines)
    _write(lines)

  def test_torn_record_comes_back_too(self):
    lines = _lines()
    _context().records.write_text('\n'.join(lines)[:-40])
    _quickstart()
    self.assertEqual(_lines(), lines)

  def test_force_computes_again(self):
    context = _copy('forced')._replace(force=True)
    (victim,) = zoo.find(context.workdir, 'attacked')
    (old,) = zoo.find(context.workdir, 'defended', method='ft')
    written = (old.path / 'DONE').stat().st_mtime_ns
    with toy.compiled_once():
      config = ft.get_config('quick')
      (new,), out = toy.quiet(defend.main, config, context, victim.name)
    self.assertNotIn('finished before', out)
    self.assertEqual(new.name, old.name)
    self.assertEqual(new.content['state/model'], old.content['state/model'])
    self.assertEqual(new.card.metrics, old.card.metrics)
    self.assertGreater((new.path / 'DONE').stat().st_mtime_ns, written)
    lines = context.records.read_text().splitlines()
    self.assertLen(lines, len(_lines()) + 1)
    # Of each run the latest record counts.
    self.assertLen(zoo.records.read(context.records), len(_lines()))

  def test_order_of_resuming_spares_finished_parents(self):
    (child, _) = zoo.find(_context().workdir, 'defended')
    times = _times()
    with toy.compiled_once():
      config = quickstart_config.get_config('quick').paths.linear
      toy.quiet(connect.main, config, _context(), child.name)
    self.assertEqual(_times(), times)


class SecondSeedTest(absltest.TestCase):
  def test_other_runs_and_rows(self):
    first, _, records = _first()
    context = _copy('second')
    config, defense = badnets.get_config('quick'), ft.get_config('quick')
    config.seed = defense.seed = 1
    with toy.compiled_once():
      made, _ = toy.quiet(attack.main, config, context)
      children, _ = toy.quiet(defend.main, defense, context, made.name)
    ids = {made.card.run_id, *(a.card.run_id for a in children)}
    self.assertLen(ids, 2)
    self.assertEmpty(ids & {record['run_id'] for record in records})
    self.assertNotEqual(
      made.content['state/model'],
      zoo.find(_context().workdir, 'attacked')[0].content['state/model'],
    )
    with toy.compiled_once():
      rows, _ = toy.quiet(report.main, None, context)
    self.assertLen(rows, len(first) + 2)
    self.assertLen(set(_ids(rows)), len(rows))
    names = {row['model'] for row in rows}
    self.assertLen(names, len(rows))
    seeds = {f'badnets #{seed}' for seed in (0, 1)}
    self.assertContainsSubset(
      seeds | {f'badnets + ft #{seed}' for seed in (0, 1)}, names
    )


def _copy(name: str) -> cli.Context:
  """A store with the same artefacts and records."""
  shutil.copytree(_context().workdir, toy.folder(name))
  return cli.Context(toy.folder(name))


def _ids(rows) -> list[str]:
  return [row['run_id'] for row in rows]


def _write(lines: list[str]) -> None:
  _context().records.write_text(''.join(f'{line}\n' for line in lines))


if __name__ == '__main__':
  absltest.main()
