import json
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax.zoo import records

# style.md 4.6's own list.
CORE = (
  'run_id time_utc code_version jax_version device_kind stage method '
  'config_digest parents dataset arch attack label_mode poison_ratio '
  'target_label defense clean_ratio seed c_acc asr r_acc der rir bec bec_raw '
  'bec_per_layer reactivated_asr control_clean_input_asr '
  'control_clean_model_asr oracle_used steps compile_s run_s examples_per_s '
  'peak_bytes finite'
).split()


def _append_many(path, writer, count):
  for number in range(count):
    records.append(
      path,
      records.record(
        run_id=f'{writer}-{number}', stage='attack', reason_text='x' * 3000
      ),
    )


class RecordTest(parameterized.TestCase):
  def test_all_core_fields_with_documentation(self):
    assert not set(CORE) - set(records.FIELDS)
    assert all(records.FIELDS.values())
    assert records.FRACTIONS <= set(records.FIELDS)

  def test_every_field_is_present_and_missing_is_none(self):
    entry = records.record(run_id='a', asr=0.5)
    assert list(entry) == list(records.FIELDS)
    given = {k: v for k, v in entry.items() if v is not None}
    assert given == {'run_id': 'a', 'asr': 0.5, 'schema_version': 1}

  def test_plain_data(self):
    entry = records.record(
      parents=('a', 'b'),
      c_acc=jnp.float32(0.1),
      bec_per_layer=np.array([0.5, 1.5], np.float32),
      steps=np.int64(3),
      oracle_used=np.bool_(False),
    )
    assert entry['parents'] == ['a', 'b']
    assert entry['c_acc'] == 0.1
    assert entry['bec_per_layer'] == [0.5, 1.5]
    assert entry['steps'] == 3 and isinstance(entry['steps'], int)
    assert entry['oracle_used'] is False
    json.dumps(entry, allow_nan=False)

  def test_unknown_stage(self):
    with self.assertRaisesRegex(ValueError, "Did you mean 'attack'"):
      records.record(stage='attacked')

  def test_unknown_field(self):
    with self.assertRaisesRegex(KeyError, "Did you mean 'target_label'"):
      records.record(target_lable=0)

  @parameterized.parameters(
    (dict(asr=97.5), r'`asr=97.5` is not in \[0, 1\].*97.5 % is 0.975'),
    (dict(c_acc=-0.1), 'c_acc'),
    (dict(c_acc_per_class=[0.5, 1.2]), 'c_acc_per_class'),
    (dict(poison_ratio='0.1'), 'poison_ratio'),
  )
  def test_fractions(self, fields, words):
    with self.assertRaisesRegex(ValueError, words):
      records.record(**fields)

  @parameterized.parameters(0, 1, 0.0, 1.0)
  def test_ends_of_the_interval_are_fractions(self, value):
    assert records.record(asr=value)['asr'] == value

  @parameterized.parameters(
    (dict(asr=float('nan')), 'asr', None),
    (dict(final_train_loss=np.inf, finite=True), 'final_train_loss', None),
    (dict(cka_clean=[0.5, np.nan]), 'cka_clean', [0.5, None]),
  )
  def test_non_finite_becomes_null(self, fields, name, value):
    entry = records.record(**fields)
    assert entry[name] == value
    assert entry['finite'] is False

  def test_finite_is_kept(self):
    assert records.record(asr=0.5, finite=True)['finite'] is True
    assert records.record(asr=0.5)['finite'] is None
    assert records.record(**records.record(asr=np.nan))['finite'] is False


class FileTest(parameterized.TestCase):
  @pytest.fixture(autouse=True)
  def _folder(self, tmp_path):
    self.path = tmp_path / 'deep' / 'records.jsonl'

  def test_round_trip(self):
    entries = [records.record(run_id=str(i), asr=i / 4) for i in range(4)]
    for entry in entries:
      records.append(self.path, entry)
    assert records.read(self.path) == entries
    assert records.scan(self.path) == (entries, None)
    assert len(self.path.read_text().splitlines()) == 4

  def test_append_checks(self):
    with self.assertRaises(KeyError):
      records.append(self.path, {'nonsense': 1})
    with self.assertRaises(ValueError):
      records.append(self.path, {'asr': 50})
    assert not self.path.exists()

  def test_missing_file(self):
    with self.assertRaisesRegex(FileNotFoundError, 'no records at'):
      records.read(self.path)

  @parameterized.parameters(1, 40, 1000)
  def test_torn_last_line_is_dropped_with_a_notice(self, kept):
    self._write_two()
    content = self.path.read_bytes()
    first = content.index(b'\n') + 1
    self.path.write_bytes(content[: first + kept])
    found = records.scan(self.path)
    assert [e['run_id'] for e in found.records] == ['a']
    assert 'line 2' in found.torn
    assert [e['run_id'] for e in records.read(self.path)] == ['a']

  def test_whole_last_line_without_its_end_counts(self):
    self._write_two()
    self.path.write_bytes(self.path.read_bytes()[:-1])
    found = records.scan(self.path)
    assert [e['run_id'] for e in found.records] == ['a', 'b']
    assert found.torn is None
    records.append(self.path, {'run_id': 'c'})
    assert [e['run_id'] for e in records.read(self.path)] == ['a', 'b', 'c']

  def test_holds_what_was_written_whole(self):
    assert not records.holds(self.path, 'a')
    self._write_two()
    assert records.holds(self.path, 'a') and records.holds(self.path, 'b')
    assert not records.holds(self.path, 'c')
    self.path.write_bytes(self.path.read_bytes()[:-30])
    assert records.holds(self.path, 'a')
    assert not records.holds(self.path, 'b')

  def test_append_after_a_torn_line(self):
    self._write_two()
    self.path.write_bytes(self.path.read_bytes()[:-30])
    records.append(self.path, {'run_id': 'c'})
    found = records.scan(self.path)
    assert [e['run_id'] for e in found.records] == ['a', 'c']
    assert found.torn is None

  @parameterized.parameters('{"run_id": "x', '', '[]', '{"a": 1}{"b": 2}')
  def test_torn_middle_line_is_an_error_with_its_number(self, line):
    self._write_two()
    lines = self.path.read_text().splitlines()
    self.path.write_text('\n'.join([lines[0], line, lines[1]]) + '\n')
    with self.assertRaisesRegex(ValueError, 'records.jsonl: line 2 is not'):
      records.read(self.path)

  def test_latest_of_each_run_and_stage_wins(self):
    for run_id, stage, asr in [
      ('a', 'attack', 0.1),
      ('b', 'attack', 0.2),
      ('a', 'existence', 0.3),
      ('a', 'attack', 0.4),
      (None, 'attack', 0.5),
      (None, 'attack', 0.6),
    ]:
      records.append(self.path, dict(run_id=run_id, stage=stage, asr=asr))
    kept = [e['asr'] for e in records.read(self.path)]
    assert kept == [0.4, 0.2, 0.3, 0.5, 0.6]
    assert len(records.scan(self.path).records) == 6

  def test_older_and_newer_schemas(self):
    self.path.parent.mkdir()
    self.path.write_text('{"run_id": "a", "of_tomorrow": 1}\n')
    (entry,) = records.read(self.path)
    assert entry['of_tomorrow'] == 1
    assert entry['asr'] is None

  def test_concurrent_threads(self):
    threads = [
      threading.Thread(target=_append_many, args=(self.path, i, 10))
      for i in range(4)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    self._check_all(4, 10)

  def _check_all(self, writers, count):
    found = records.scan(self.path)
    assert found.torn is None
    expected = {f'{w}-{n}' for w in range(writers) for n in range(count)}
    assert {e['run_id'] for e in found.records} == expected
    assert len(found.records) == len(expected)

  def _write_two(self):
    for run_id in 'ab':
      records.append(self.path, {'run_id': run_id, 'reason_text': 'y' * 3000})
