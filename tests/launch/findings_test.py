"""What a study says of its rows."""

from absl.testing import parameterized

from launch import findings


def row(defense='ft', **fields):
  """A defended model whose backdoor worked before and not after."""
  base = dict(
    stage='defend',
    defense=defense,
    parents=['a0'],
    base_asr=1.0,
    asr=0.02,
    c_acc=0.9,
    bec=0.6,
    white_box_asr=0.9,
    white_box_clean_input=0.1,
    white_box_clean_model=0.2,
    black_box_asr=0.7,
    black_box_clean_input=0.1,
    black_box_clean_model=0.1,
    transfer_asr=0.5,
    transfer_clean_input=0.1,
    transfer_clean_model=0.1,
    qra_asr=0.8,
    qra_clean_input=0.0,
    qra_clean_model=0.1,
    p_asr=0.9,
    retuned_clean_asr=0.1,
  )
  return base | fields


LASTING = [row('exact_purification', p_asr=0.1), row('pam', p_asr=0.2)]
AS_PUBLISHED = [row(), row('nad'), row('ft_sam'), *LASTING]


def verdicts(rows):
  """{number of the finding: whether it holds}."""
  return {c.claim.split()[0]: c.holds for c in findings.checks(rows)}


class FindingsTest(parameterized.TestCase):
  def test_published_findings_hold_on_rows_like_the_published(self):
    found = verdicts(AS_PUBLISHED)
    self.assertIsNone(found.pop('P8'))
    self.assertEqual(set(found.values()), {True})
    self.assertSameElements(found, ['P1', 'P2', 'P3', 'P6', 'P7', 'P9'])

  @parameterized.parameters(
    ('P1', dict(bec=0.1)),
    ('P2', dict(black_box_asr=0.1)),
    ('P2', dict(white_box_asr=0.6)),
    ('P3', dict(black_box_clean_input=0.6)),
    ('P6', dict(transfer_asr=0.05)),
    ('P7', dict(p_asr=0.2)),
    ('P7', dict(retuned_clean_asr=0.8)),
    ('P9', dict(qra_clean_model=0.8)),
  )
  def test_each_fails_where_its_numbers_do(self, name, change):
    rows = [r | change for r in AS_PUBLISHED]
    self.assertIs(verdicts(rows)[name], False)

  def test_nothing_measured_says_nothing(self):
    self.assertEqual(set(verdicts([]).values()), {None})
    self.assertIn('not measured', findings.summary([]))
    # Without those that are to last there is nothing to compare with.
    self.assertIsNone(verdicts([row()])['P7'])

  def test_models_that_kept_or_never_had_a_backdoor_do_not_count(self):
    rows = [row(asr=0.9), row(base_asr=0.3), row(stage='attack'), row()]
    self.assertLen(findings.removed(rows), 1)

  def test_rho(self):
    pam = lambda rho, error, accuracy: row(
      'pam',
      variant=None if rho == 0.5 else f'rho={rho}',
      backdoor_error_auc=error,
      c_acc=accuracy,
    )
    rows = [pam(0.9, 0.8, 0.7), pam(0.5, 0.5, 0.8), pam(0.3, 0.4, 0.9)]
    (check,) = (c for c in findings.checks(rows) if c.claim.startswith('P8'))
    self.assertTrue(check.holds)
    self.assertRegex(check.numbers, r'ρ 0\.3: 0\.40.*ρ 0\.5: 0\.50.*ρ 0\.9')
    rows[0] = pam(0.9, 0.3, 0.7)
    self.assertFalse(verdicts(rows)['P8'])
    self.assertTrue(verdicts(rows[1:])['P8'])
    self.assertIsNone(verdicts(rows[2:])['P8'])

  def test_summary_counts(self):
    text = findings.summary([*AS_PUBLISHED, row(asr=0.9)])
    self.assertIn('Of 6 defended models whose attack worked, 5 have', text)
    self.assertIn('learned with gradients wakes 5 of 5', text)
    self.assertIn('brings 3 of 5 of them back', text)
    self.assertIn('5 of 5 of them keep a BEC', text)
    self.assertIn('| holds |', text)
