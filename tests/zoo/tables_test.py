"""Tables: what a row joins, order, names, verdicts, Markdown and CSV."""

import csv
import io

from absl.testing import parameterized

from bdjax.zoo import records, tables


def clean(**changes):
  base = dict(run_id='c0', stage='clean', method='clean', c_acc=0.95)
  return _record(base | changes)


def attacked(**changes):
  base = dict(
    run_id='a0',
    stage='attack',
    method='badnets',
    attack='badnets',
    label_mode='all2one',
    c_acc=0.9,
    asr=1.0,
    r_acc=0.0,
  )
  return _record(base | changes)


def defended(**changes):
  base = dict(
    run_id='d0',
    stage='defend',
    method='ft_sam',
    parents=['a0'],
    attack='badnets',
    label_mode='all2one',
    defense='ft_sam',
    c_acc=0.88,
    asr=0.02,
    r_acc=0.85,
    der=0.98,
    base_asr=1.0,
    base_c_acc=0.9,
  )
  return _record(base | changes)


def measured(stage, run_id, parents=('d0', 'a0', 'c0'), **fields):
  method = 'white_box' if stage == 'reactivate' else 'm'
  base = dict(run_id=run_id, stage=stage, method=method, parents=list(parents))
  return _record(base | fields)


def _record(fields):
  base = dict(status='done', dataset='cifar10', arch='tiny', seed=0)
  return records.record(**base | fields)


def names(entries):
  return [row['model'] for row in tables.rows(entries)]


class RowsTest(parameterized.TestCase):
  def test_the_best_known_re_activation_stands_for_all(self):
    rate = lambda run_id, method, asr: measured(
      'reactivate',
      run_id,
      method=method,
      reactivated_asr=asr,
      control_clean_input_asr=asr / 2,
      control_clean_model_asr=asr / 4,
    )
    entries = [attacked(), defended(), rate('q0', 'qra', 0.9)]
    row = tables.rows(entries)[1]
    self.assertEqual((row['reactivated_asr'], row['qra_asr']), (0.9, 0.9))
    self.assertEqual(row['reactivated_by'], 'qra')
    entries += [rate('t0', 'transfer', 0.4), rate('w0', 'white_box', 0.6)]
    row = tables.rows(entries)[1]
    self.assertEqual(row['reactivated_by'], 'white_box')
    self.assertEqual(row['reactivated_asr'], 0.6)
    self.assertEqual(row['control_clean_input_asr'], 0.3)
    self.assertEqual(
      (row['qra_asr'], row['transfer_asr'], row['transfer_clean_model']),
      (0.9, 0.4, 0.1),
    )

  def test_variants_of_a_measurement_are_left_out(self):
    usual = measured('reactivate', 'r0', reactivated_asr=0.6)
    other = measured('reactivate', 'r1', reactivated_asr=0.9, variant='eps=0.1')
    row = tables.rows([attacked(), defended(), usual, other])[1]
    self.assertEqual(row['reactivated_asr'], 0.6)

  def test_variants_of_a_defense_carry_their_name(self):
    more = defended(run_id='d1', config_digest='f' * 64, variant='rho=0.9')
    found = tables.rows([attacked(), defended(), more])
    self.assertEqual(
      [row['model'] for row in found[1:]],
      ['badnets + ft_sam', 'badnets + ft_sam (rho=0.9)'],
    )

  def test_columns_appear_where_a_row_has_something(self):
    plain = tables.rows([attacked(), defended()])
    self.assertEqual(tables.columns(plain), tables.COLUMNS)
    retuned = measured(
      'reactivate',
      'r0',
      method='retuning_attack',
      p_asr=0.8,
      control_clean_model_asr=0.1,
    )
    table = tables.rows([attacked(), defended(), retuned])
    names = [name for name, _, _ in tables.columns(table)]
    self.assertContainsSubset({'p_asr', 'retuned_clean_asr'}, names)
    self.assertNotIn('qra_asr', names)
    self.assertEqual(names[-1], 'seconds')
    self.assertIn('| P-ASR [%] |', tables.to_markdown(table))
    self.assertIn('p_asr', tables.to_csv(table))

  def test_a_row_joins_what_was_measured_on_its_model(self):
    found = tables.rows(
      [
        attacked(),
        defended(run_s=2.0, compile_s=1.5),
        measured('existence', 'e0', bec=0.4, bec_raw=0.41, bec_per_layer=[0.4]),
        measured(
          'reactivate',
          'r0',
          reactivated_asr=0.9,
          control_clean_input_asr=0.3,
          control_clean_model_asr=0.1,
          asr=0.5,
          run_s=7.0,
        ),
        measured('connect', 'k0', barrier_clean=0.1, tau_star=0.3),
      ]
    )
    self.assertLen(found, 2)
    row = found[1]
    self.assertEqual((row['run_id'], row['model']), ('d0', 'badnets + ft_sam'))
    self.assertEqual((row['bec'], row['bec_raw']), (0.4, 0.41))
    self.assertEqual(row['reactivated_asr'], 0.9)
    self.assertEqual((row['barrier_clean'], row['tau_star']), (0.1, 0.3))
    self.assertEqual((row['existence_run'], row['connect_run']), ('e0', 'k0'))
    # Its own numbers stay its own.
    self.assertEqual((row['asr'], row['seconds']), (0.02, 3.5))
    self.assertIsNone(found[0]['bec'])

  def test_latest_measurement_counts(self):
    entries = [attacked(), defended()]
    for run_id, bec in (('e0', 0.4), ('e1', 0.6)):
      entries.append(measured('existence', run_id, bec=bec))
    row = tables.rows(entries)[1]
    self.assertEqual((row['bec'], row['existence_run']), (0.6, 'e1'))

  def test_measurements_of_unknown_models_are_left_out(self):
    stray = measured('existence', 'e0', parents=['x0'], bec=0.4)
    rootless = measured('connect', 'k0', parents=[], tau_star=0.4)
    self.assertEqual(names([attacked(), stray, rootless]), ['badnets'])

  def test_failed_runs_are_left_out(self):
    failed = defended(run_id='d1', status='failed')
    broken = measured('existence', 'e0', bec=0.4, status='failed')
    row = tables.rows([attacked(), failed, defended(), broken])[1]
    self.assertEqual((row['run_id'], row['bec']), ('d0', None))

  def test_records_are_not_changed(self):
    entries = [attacked(), defended(), measured('existence', 'e0', bec=0.4)]
    before = [dict(entry) for entry in entries]
    tables.rows(entries)
    self.assertEqual(entries, before)

  def test_nothing_gives_nothing(self):
    self.assertEqual(tables.rows([]), [])

  @parameterized.parameters(
    (None, None, None), (1.0, None, 1.0), (None, 2.0, 2.0), (0.0, 0.0, 0.0)
  )
  def test_seconds_of_what_is_known(self, compile_s, run_s, want):
    (row,) = tables.rows([clean(compile_s=compile_s, run_s=run_s)])
    self.assertEqual(row['seconds'], want)


class OrderTest(parameterized.TestCase):
  def test_clean_then_each_attack_followed_by_its_defenses(self):
    blended = dict(attack='blended', method='blended')
    entries = [
      defended(run_id='d3', parents=['a1'], attack='blended'),
      defended(run_id='d1', defense='ft', method='ft'),
      attacked(run_id='a1', **blended),
      defended(),
      clean(),
      attacked(),
    ]
    want = [
      'clean',
      'badnets',
      'badnets + ft',
      'badnets + ft_sam',
      'blended',
      'blended + ft_sam',
    ]
    self.assertEqual(names(entries), want)
    self.assertEqual(names(entries[::-1]), want)

  def test_defenses_follow_the_seed_of_their_attack(self):
    entries = [
      attacked(run_id='a1', seed=1),
      attacked(),
      defended(run_id='d1', parents=['a1'], seed=0),
      defended(seed=0),
    ]
    want = [
      'badnets #0',
      'badnets + ft_sam #0',
      'badnets #1',
      'badnets + ft_sam #1/0',
    ]
    self.assertEqual(names(entries), want)

  def test_worlds_are_apart_and_named(self):
    digits = dict(dataset='digits16')
    entries = [
      attacked(run_id='a1', **digits),
      attacked(),
      clean(run_id='c1', **digits),
      clean(),
    ]
    want = [
      'clean (cifar10)',
      'badnets (cifar10)',
      'clean (digits16)',
      'badnets (digits16)',
    ]
    self.assertEqual(names(entries), want)
    wide = [clean(), clean(run_id='c1', arch='vgg19_bn')]
    self.assertEqual(names(wide), ['clean (tiny)', 'clean (vgg19_bn)'])

  def test_a_defense_of_a_defended_model_stays_in_the_family(self):
    entries = [
      attacked(run_id='a0'),
      attacked(run_id='z0', attack='blended', method='blended'),
      defended(),
      defended(run_id='d9', parents=['d0'], defense='ft'),
    ]
    self.assertEqual(names(entries)[-1], 'blended')

  def test_all_to_all_is_named(self):
    self.assertEqual(
      names([attacked(label_mode='all2all')]), ['badnets (all2all)']
    )

  def test_settings_of_a_defense_are_named_alike_on_all_models(self):
    entries = [
      attacked(),
      attacked(run_id='a1', attack='blended'),
      defended(run_id='d1', config_digest='1111aa'),
      defended(run_id='d2', config_digest='2222bb'),
      defended(
        run_id='d3', parents=['a1'], attack='blended', config_digest='2222bb'
      ),
      defended(run_id='d4', defense='ft', config_digest='3333cc'),
    ]
    want = [
      'badnets',
      'badnets + ft',
      'badnets + ft_sam [1111]',
      'badnets + ft_sam [2222]',
      'blended',
      'blended + ft_sam [2222]',
    ]
    self.assertEqual(names(entries), want)

  def test_two_runs_of_one_setting_have_two_names(self):
    ids = ('0123456789abcdef', '123456789abcdef0')
    entries = [attacked(), *(defended(run_id=run_id) for run_id in ids)]
    want = [f'badnets + ft_sam [{run_id[:8]}]' for run_id in ids]
    self.assertEqual(names(entries), ['badnets', *want])

  def test_missing_coordinates_do_not_break_the_order(self):
    entries = [
      attacked(seed=None, dataset=None),
      attacked(run_id='a1', arch=None),
      defended(parents=['gone']),
    ]
    self.assertLen(names(entries), 3)


class VerdictTest(parameterized.TestCase):
  @parameterized.parameters(
    # The plain trigger: 50 % counts as working.
    (dict(asr=0.5), 'not removed: the plain trigger still succeeds on 50%.'),
    (
      dict(asr=0.499),
      'ASR fell to 50%; whether the backdoor is gone has not been tested.',
    ),
    (dict(asr=1.0, reactivated_asr=1.0), 'not removed'),
    # Re-activation: 50 % counts as working, without a comparison.
    (
      dict(reactivated_asr=0.49),
      'no living backdoor found: ASR fell to 2%, and a perturbation on top of '
      'the trigger brings it to 49% at most.',
    ),
    # A lead of 25 points over both controls is the backdoor's own.
    (
      dict(
        reactivated_asr=0.75,
        control_clean_input_asr=0.5,
        control_clean_model_asr=0.0,
      ),
      'dormant, not gone: ASR fell to 2%, but a perturbation on top of the '
      'trigger brings it to 75%, against 50% where no backdoor can help.',
    ),
    (
      dict(
        reactivated_asr=0.74,
        control_clean_input_asr=0.0,
        control_clean_model_asr=0.5,
      ),
      'undecided: ASR fell to 2% and a perturbation on top of the trigger '
      'brings it to 74%, but the same attack reaches 50% where no backdoor '
      'can help.',
    ),
    # So it is where the backdoor stays far below what it was before.
    (
      dict(
        reactivated_asr=0.44,
        control_clean_input_asr=0.0,
        control_clean_model_asr=0.02,
      ),
      'dormant, not gone.* 44%, against 2% where',
    ),
    (
      dict(
        reactivated_asr=0.44,
        control_clean_input_asr=0.2,
        control_clean_model_asr=0.02,
      ),
      'no living backdoor found.* 44% at most',
    ),
    # A missing control is no control of 0.
    (dict(reactivated_asr=0.9), 'undecided.*without both controls'),
    (
      dict(reactivated_asr=0.9, control_clean_input_asr=0.0),
      'undecided.*without both controls',
    ),
    (
      dict(
        reactivated_asr=0.9,
        control_clean_input_asr=0.0,
        control_clean_model_asr=0.0,
      ),
      'dormant, not gone.*against 0%',
    ),
    # Attacks that failed and runs that broke.
    (
      dict(base_asr=0.3, asr=0.1),
      'nothing to remove: the attack itself succeeds on 30% only.',
    ),
    (dict(base_asr=None), 'ASR fell to 2%'),
    (dict(asr=0.0, finite=False), 'broken: .* not finite'),
    # What it costs.
    (dict(c_acc=0.7), r'tested. C-Acc fell from 90% to 70%\.$'),
    (dict(asr=0.9, c_acc=0.7), r'on 90%. C-Acc fell from 90% to 70%\.$'),
    (dict(c_acc=0.81), r'tested\.$'),
    (dict(bec=0.0), r'tested\. BEC 0.00 of the backdoored model\.$'),
    (dict(bec=0.4, c_acc=0.5), r'BEC 0.40 .* model\. C-Acc fell'),
  )
  def test_sentence(self, values, pattern):
    row = tables.rows([defended()])[0] | values
    self.assertRegex(tables.verdict(row), pattern)

  @parameterized.parameters((clean(),), (attacked(),), (defended(asr=None),))
  def test_none_where_there_is_nothing_to_judge(self, entry):
    self.assertIsNone(tables.verdict(tables.rows([entry])[0]))

  @parameterized.parameters(
    (0.9, 0.1, r'Superficial: .* to 90%, and that of a clean model to 10%'),
    (0.3, 0.1, r'gone has not been tested.* Retuning .* brings the ASR to 30%'),
  )
  def test_retuning_has_a_sentence_of_its_own(self, after, control, pattern):
    retuned = measured(
      'reactivate',
      'r0',
      method='retuning_attack',
      p_asr=after,
      control_clean_model_asr=control,
    )
    row = tables.rows([attacked(), defended(), retuned])[1]
    self.assertRegex(tables.verdict(row), pattern)


class PrintingTest(parameterized.TestCase):
  def rows(self):
    return tables.rows(
      [clean(), attacked(), defended(run_s=61.26, c_acc=0.87654)]
    )

  @parameterized.parameters(
    ('c_acc', True, 0.98765, '98.8'),
    ('c_acc', True, 0.0, '0.0'),
    ('der', False, 0.98765, '0.99'),
    ('seconds', False, 61.26, '61.3'),
    ('model', False, 'clean', 'clean'),
    ('bec', False, None, '–'),
    ('asr', True, None, '–'),
  )
  def test_cells(self, name, is_rate, value, want):
    self.assertEqual(tables.shown({name: value}, name, is_rate), want)

  def test_a_field_that_is_not_there_is_a_dash(self):
    self.assertEqual(tables.shown({}, 'asr', True), '–')

  def test_markdown(self):
    lines = tables.to_markdown(self.rows()).splitlines()
    self.assertLen(lines, 5)
    self.assertStartsWith(lines[0], '| model | C-Acc [%] | ASR [%] |')
    self.assertEqual({line.count('|') for line in lines}, {11})
    cells = [cell.strip() for cell in lines[4].strip('|').split('|')]
    want = ['badnets + ft_sam', '87.7', '2.0', '85.0', '0.98']
    self.assertEqual(cells, [*want, '–', '–', '–', '–', '61.3'])
    self.assertIn('| clean | 95.0 | – | – |', lines[2])

  def test_csv_is_unrounded_and_leaves_missing_values_empty(self):
    text = tables.to_csv(self.rows())
    found = list(csv.DictReader(io.StringIO(text)))
    self.assertLen(found, 3)
    self.assertEqual(float(found[2]['c_acc']), 0.87654)
    self.assertEqual((found[0]['asr'], found[0]['bec']), ('', ''))
    self.assertEqual((found[2]['run_id'], found[2]['seed']), ('d0', '0'))
    fields = [name for name, _, _ in tables.COLUMNS]
    self.assertEqual(list(found[0])[: len(fields)], fields)

  def test_csv_and_markdown_of_nothing_are_headers(self):
    self.assertLen(tables.to_csv([]).splitlines(), 1)
    self.assertLen(tables.to_markdown([]).splitlines(), 2)
