"""Run records: one JSON line per model, method and seed.

Every table and figure is made from these lines alone. A missing value is null,
never 0; fractions lie in [0, 1]; JSON has no NaN, so a number that is not
finite becomes null and the record's `finite` false.
"""

import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bdjax import checks, registry
from bdjax.zoo import cards, digest, files

SCHEMA_VERSION = 1

# One line per field; a formula where it is not obvious. `before` = the
# attacked parent, `after` = the model of this record.
FIELDS = {
  # Identity.
  'run_id': 'digest that names the run (digest.run_id)',
  'parents': 'run_ids it starts from, in the order of their roles',
  'schema_version': 'version of this list of fields',
  'dataset_id': 'identity of the data as the run saw it',
  'manifest': 'digest of the sweep manifest it belongs to',
  'release': 'release of the benchmark it belongs to',
  'stage': 'clean, attack, defend, existence, reactivate, connect, detect or '
  'analyze',
  'method': 'registry key of what was run in this stage',
  'method_version': "raised when a method's numbers change on purpose",
  'config_digest': 'digest of the fully resolved settings',
  # Coordinates.
  'dataset': 'registry key of the data set',
  'arch': 'registry key of the architecture',
  'attack': 'registry key of the attack, none for a clean model',
  'attack_kind': 'dirty, clean_label or train_control',
  'label_mode': 'all2one or all2all',
  'target_label': 'class the trigger leads to, null for all-to-all',
  'source_label': 'only class that is attacked, null for every class',
  'poison_ratio': 'poisoned examples / whole training set',
  'cover_ratio': 'triggered but not relabelled / whole training set',
  'num_poison': 'number of poisoned training examples, null where no fixed '
  'subset is poisoned',
  'trigger_params_hash': "SHA-256 of the trigger's parameters",
  'defense': 'registry key of the defense, null for none',
  'defense_stage': 'none, pre_training, training, post_training or inference',
  'variant': 'name of a variant of the method',
  'seed': 'root of all randomness',
  'clean_ratio': "defender's clean examples / whole training set",
  'num_clean': "number of the defender's clean examples",
  'reserve_id': "digest of the defender's indices",
  'reserve_size': "number of the defender's indices",
  'threat_model': 'what the attacker holds (registry.ACCESS)',
  'eps': 'perturbation budget, pixel space [0, 1] or weight space',
  'norm': 'linf, l2 or l1',
  # Main metrics.
  'c_acc': 'clean test images classified right / clean test images',
  'asr': 'triggered images sent to relabel(y) / triggered images with '
  'relabel(y) ≠ y',
  'r_acc': 'triggered images still given their true label / the same images',
  'der': '(max(0, asr before − after) − max(0, c_acc before − after) + 1) / 2',
  'rir': '(max(0, r_acc after − before) − max(0, c_acc before − after) + 1) '
  '/ 2',
  'c_acc_drop': 'c_acc before − after',
  'asr_drop': 'asr before − after',
  'c_acc_std': 'standard deviation of c_acc over seeds, aggregates only',
  'asr_std': 'standard deviation of asr over seeds, aggregates only',
  'cross_acc': 'images with a cross trigger classified right / test images',
  'cross_asr': 'images with a cross trigger sent to relabel(y) / those with '
  'relabel(y) ≠ y',
  'n_clean_test': 'number of clean test images counted',
  'n_triggered_test': 'number of triggered test images with relabel(y) ≠ y',
  'c_acc_per_class': 'c_acc by true class, a list',
  'asr_per_source_class': 'asr by true class, a list',
  # Links to the undefended attack of the same seed, and to the clean model.
  'base_c_acc': 'c_acc before',
  'base_asr': 'asr before',
  'base_r_acc': 'r_acc before',
  'clean_model_c_acc': 'c_acc of the clean model',
  # Detection.
  'detector_kind': 'train, input or model',
  'threshold_rule': 'how the threshold was set',
  'threshold_value': 'the threshold',
  'n_inspected': 'number of samples or models scored',
  'n_poison': 'number of poisoned ones among them',
  'n_flagged': 'number of flagged ones',
  'tp': 'poisoned and flagged',
  'fp': 'clean and flagged',
  'tn': 'clean and not flagged',
  'fn': 'poisoned and not flagged',
  'tpr': 'tp / (tp + fn)',
  'fpr': 'fp / (fp + tn)',
  # `precision` alone is the matmul precision, below.
  'detection_precision': 'tp / (tp + fp)',
  'f1': '2·detection_precision·tpr / (detection_precision + tpr)',
  'f_w9': 'F score that weighs recall by 9',
  'accuracy': '(tp + tn) / n_inspected',
  'auroc': 'area under the ROC curve',
  'auprc': 'area under the precision-recall curve',
  'tpr_at_fpr_0.001': 'tpr where fpr = 0.001',
  'tpr_at_fpr_0.01': 'tpr where fpr = 0.01',
  'tpr_at_fpr_0.05': 'tpr where fpr = 0.05',
  'tpr_at_fpr_0.1': 'tpr where fpr = 0.1',
  'fpr_at_tpr_0.95': 'fpr where tpr = 0.95',
  'flagged_classes': 'classes a model-level detector names, a list',
  'target_hit': 'whether the true target is among them',
  'class_scores_path': 'where the scores by class lie, relative to the store',
  'sample_scores_path': 'where the scores by sample lie, relative to the store',
  'tap': 'activation the detector reads',
  'few_classes': 'whether a median deviation stands on fewer than 5 classes',
  # Existence.
  'bec': 'backdoor existence coefficient, clipped to [0, 1]',
  'bec_raw': 'the same, unclipped',
  'bec_mean_of_ratios': 'mean over taps of the ratios by tap, unclipped',
  'bec_per_layer': 'summands of bec_mean_of_ratios, a list over taps',
  's_defended': 'mean CKA of defended and backdoored features',
  's_clean': 'mean CKA of clean and backdoored features',
  'cka_defended': 'CKA of defended and backdoored features, a list over taps',
  'cka_clean': 'CKA of clean and backdoored features, a list over taps',
  'debiased': 'whether the CKA estimator is the debiased one',
  # Re-activation.
  'reactivated_asr': 'asr of trigger and perturbation on the defended model',
  'control_clean_input_asr': 'the same attack run on clean inputs of the '
  'defended model',
  'control_clean_model_asr': 'the same attack run on triggered inputs of the '
  'clean model',
  'reactivation_budget': 'queries, steps or images the attack may use',
  'o_asr': 'retuning attack: asr of the plain trigger before',
  'p_asr': 'retuning attack: asr of the plain trigger after',
  # Connectivity.
  'barrier_clean': 'max over t of err(t) − ((1 − t)·err(0) + t·err(1))',
  'tau_star': 'largest t at which asr ≥ 0.5',
  'backdoor_error_auc': 'mean over t of 1 − asr',
  'bn_reestimated': 'whether running statistics were recomputed on the way',
  # Robustness.
  'asr_variants': 'asr under changed opacity, size or position, a mapping',
  'adv_acc': 'accuracy under an adversarial attack',
  # Training trace and cost.
  'epochs': 'epochs trained',
  'steps': 'steps trained',
  'grad_passes': 'batches whose gradient was taken',
  'final_train_loss': 'loss at the last step',
  'best_epoch': 'epoch a selection chose',
  'curve_ref': 'where the curves lie, relative to the store',
  'compile_s': 'seconds of compilation and of setting up',
  'run_s': 'seconds of running, without compilation',
  'examples_per_s': 'examples·models / run_s',
  'peak_bytes': 'peak device memory',
  'device_kind': 'kind of device, such as cpu',
  'n_devices': 'number of devices',
  'device_s': 'run_s · n_devices',
  'flops_est': 'estimated floating-point operations',
  'pack_id': 'pack it was run in',
  'pack_size': 'lanes of that pack',
  # Quality.
  'finite': 'whether every number of the run was finite',
  'oracle_used': 'whether it saw attack test data, the trigger or the ratio',
  'selected_on': 'attack used for selection, where it differs from `attack`',
  'flags': 'quality flags, a list',
  'status': 'done, failed, infeasible, unsupported, blocked or quarantined',
  'reason_code': 'why there is no number, or why it is flagged',
  'reason_text': 'the same for people',
  # Provenance.
  'time_utc': 'when the record was made, ISO 8601',
  'code_version': 'commit or package version of bdjax',
  'jax_version': 'version of jax',
  'flax_version': 'version of flax',
  'optax_version': 'version of optax',
  'backend': 'cpu, gpu or tpu',
  'precision': 'matmul precision',
  'exec_mode': 'how a stack was run: vmap, map, loop or shard',
  'host_kind': 'processor architecture',
  'log_ref': 'where the log lies, relative to the store',
  'ckpt_ref': 'folder of the artefact, relative to the store',
  'ckpt_sha256': 'SHA-256 of its model',
}

FRACTIONS = frozenset(
  'poison_ratio cover_ratio clean_ratio c_acc asr r_acc der rir '
  'cross_acc cross_asr '
  'c_acc_per_class asr_per_source_class base_c_acc base_asr base_r_acc '
  'clean_model_c_acc tpr fpr detection_precision f1 f_w9 accuracy auroc auprc '
  'tpr_at_fpr_0.001 tpr_at_fpr_0.01 tpr_at_fpr_0.05 tpr_at_fpr_0.1 '
  'fpr_at_tpr_0.95 bec reactivated_asr control_clean_input_asr '
  'control_clean_model_asr o_asr p_asr tau_star backdoor_error_auc '
  'adv_acc'.split()
)


class Scan(NamedTuple):
  """What a file of records holds.

  Attributes:
    records: all of them, in the order of their lines.
    torn: a notice about a last line that a killed writer left unfinished;
      None where the file ends well.
  """

  records: list[dict[str, Any]]
  torn: str | None


def record(**fields: Any) -> dict[str, Any]:
  """Makes a record with every field present.

  Args:
    **fields: values of any of `FIELDS`; arrays and tuples become lists.

  Returns:
    Plain data in the order of `FIELDS`, None where nothing was given. `finite`
    is false if any number given is not finite, else as given.

  Raises:
    UnknownName: for a field that is not in `FIELDS`, with the nearest one.
    ValueError: for a fraction outside [0, 1] or an unknown stage.
    TypeError: for a value that is not plain data.

  Example:
    >>> entry = record(run_id='0123456789abcdef', stage='attack', asr=0.98)
    >>> entry['asr'], entry['c_acc']
    (0.98, None)
  """
  for name in fields:
    if name not in FIELDS:
      raise registry.UnknownName(
        f"A record has no field '{name}'. {checks.suggest(name, FIELDS)}"
      )
  named = {k: digest.plain(v) for k, v in fields.items()}
  values = {k: digest.plain(v, 'null') for k, v in fields.items()}
  if named != values:
    values['finite'] = False
  if values.get('stage') is not None:
    checks.one_of(cards.STAGES, stage=values['stage'])
  for name in FRACTIONS & values.keys():
    _check_fraction(name, values[name])
  values.setdefault('schema_version', SCHEMA_VERSION)
  return {name: values.get(name) for name in FIELDS}


def append(path: str | os.PathLike, entry: Mapping[str, Any]) -> None:
  """Appends one record to a file; safe with other appenders at work.

  The line is written by a single call and forced to the disk. An unfinished
  last line of a killed writer is cut off first, as readers drop it anyway.

  Args:
    path: file of records; made if missing.
    entry: from `record`, or any mapping that it accepts.

  Raises:
    UnknownName: for an unknown field.
    ValueError: for a fraction outside [0, 1].
    OSError: if the disk takes only part of the line; the part is taken back.
  """
  line = (json.dumps(record(**entry), allow_nan=False) + '\n').encode()
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
  try:
    # Appends are whole lines even without the lock; it keeps the repair of a
    # torn line from cutting into a line that another process is writing.
    fcntl.flock(file, fcntl.LOCK_EX)
    _mend(file)
    size = os.fstat(file).st_size
    if os.write(file, line) != len(line):
      os.ftruncate(file, size)
      raise OSError(f'{path}: no room for a record; free some disk space.')
    os.fsync(file)
    if not size:
      files.sync(path.parent)  # the new file's own entry
  finally:
    os.close(file)


def scan(path: str | os.PathLike) -> Scan:
  """Reads all lines of a file of records.

  Args:
    path: file of records.

  Returns:
    The records, fields of older versions filled up with None and those of
    newer ones kept; and a notice where the last line is torn and was dropped.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if a line before the last is torn, with its number.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'There are no records at {path}; launchers write them as they finish.'
    )
  lines = path.read_bytes().split(b'\n')
  last = len(lines) if lines[-1] else len(lines) - 1
  found, torn = [], None
  for number, line in enumerate(lines[:last], start=1):
    entry = _parse(line)
    if entry is not None:
      found.append(entry)
    elif number == last:
      torn = f'{path}: line {number} is unfinished and was left out.'
    else:
      raise ValueError(
        f'{path}: line {number} is not a record: {line[:60]!r}; remove this '
        'line, the others are independent of it.'
      )
  return Scan([dict.fromkeys(FIELDS) | entry for entry in found], torn)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The current records of a file: of each run and stage the latest.

  Args:
    path: file of records.

  Returns:
    `deduplicate(scan(path).records)`; a torn last line is left out.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if a line before the last is torn, with its number.
  """
  return deduplicate(scan(path).records)


def holds(path: str | os.PathLike, run_id: str) -> bool:
  """Whether a file has a record of this run; nothing is parsed.

  Args:
    path: file of records; it may be missing.
    run_id: of the run.

  Returns:
    False for a record whose line is unfinished, too.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    return False
  content = path.read_bytes()
  field = f'"run_id": {json.dumps(run_id)}'.encode()
  return field in content[: content.rfind(b'\n') + 1]


def deduplicate(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Keeps the latest record of each (run_id, stage), in first-seen order.

  Records without a run_id are all kept.
  """
  latest: dict[Any, dict[str, Any]] = {}
  for number, entry in enumerate(entries):
    name = entry.get('run_id')
    key = number if name is None else (name, entry.get('stage'))
    latest[key] = dict(entry)
  return list(latest.values())


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    entry = json.loads(line)
  except ValueError:
    return None
  return entry if isinstance(entry, dict) else None


def _mend(file: int) -> None:
  """Ends an open file with a whole line, under its lock."""
  size = os.fstat(file).st_size
  if not size or os.pread(file, 1, size - 1) == b'\n':
    return
  content = os.pread(file, size, 0)
  start = content.rfind(b'\n') + 1
  if _parse(content[start:]) is None:
    os.ftruncate(file, start)
  else:
    os.write(file, b'\n')


def _check_fraction(name: str, value: Any) -> None:
  """Fractions are stored as such; percent exists in printed tables only."""
  if isinstance(value, list):
    for item in value:
      _check_fraction(name, item)
    return
  if value is None:
    return
  if isinstance(value, (str, bool)) or not 0 <= value <= 1:
    cure = 'records hold fractions'
    if isinstance(value, (int, float)) and 1 < value <= 100:
      cure += f', {value:g} % is {value / 100:g}'
    raise ValueError(f'`{name}={value!r}` is not in [0, 1]; {cure}.')
