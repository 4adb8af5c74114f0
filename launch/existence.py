"""Measures the backdoor existence coefficient of defended models.

python -m launch.existence --config=configs/existence/bec.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bdjax import existence, keys, sweep, tree, zoo
from launch import cli, lineage, show, world


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Measures every defended model that has not been measured.

  Args:
    config: see configs/existence/bec.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  pattern = parents or flags.FLAGS.parents
  made = []
  for family in lineage.families(config, context, pattern):
    clean, clean_state = lineage.clean_model(
      context, family.here, 'launch.existence'
    )
    made += _measure(config, context, family, clean, clean_state)
  return made


def _settings(config) -> dict:
  names = ('p', 'num_tac', 'num_cka', 'debiased')
  return {name: config[name] for name in names}


def _measure(config, context, family, clean, clean_state) -> list:
  """One family: the reference once, similarities as a stack."""
  settings = _settings(config)
  parents = {
    child.artefact.card.run_id: (
      child.artefact.card.run_id,
      family.victim.artefact.card.run_id,
      clean.card.run_id,
    )
    for child in family.children
  }
  run_ids = {
    name: zoo.run_id(
      'existence',
      config.name,
      1,
      settings,
      family.here.dataset_id,
      config.seed,
      roles,
    )
    for name, roles in parents.items()
  }
  known = {n: world.finished(context, i) for n, i in run_ids.items()}
  todo = [c for c in family.children if known[c.artefact.card.run_id] is None]
  if todo:
    began = time.monotonic()
    results = _similarities(config, family, clean_state, todo)
    seconds = (time.monotonic() - began) / len(todo)
    for child, (values, arrays) in zip(todo, results, strict=True):
      name = child.artefact.card.run_id
      known[name] = _store(
        config,
        context,
        settings,
        child,
        run_ids[name],
        parents[name],
        values,
        arrays,
        seconds,
      )
  for child in family.children:
    if child not in todo:
      show.done(f'existence of {child.artefact.name}: finished before')
  return list(known.values())


def _similarities(config, family, clean_state, children):
  """[(values for the record, arrays)] of each child."""
  images, triggered, *_ = lineage.triggered_test(family)
  idx_tac, idx_cka = existence.draw_indices(
    keys.root(config.seed),
    len(images),
    num_tac=config.num_tac,
    num_cka=config.num_cka,
  )
  classifier = family.here.classifier
  reference = jax.jit(
    lambda state, clean, bad, pool: existence.reference(
      classifier, state, clean, bad, pool, p=config.p
    )
  )(
    family.victim.model,
    jnp.asarray(images[idx_tac]),
    jnp.asarray(triggered[idx_tac]),
    jnp.asarray(triggered[idx_cka]),
  )
  exec, pool = cli.execution(config), jnp.asarray(triggered[idx_cka])

  def compare(deployed, states):
    one = lambda state, ref, pool: existence.similarity(
      deployed, ref, state, pool, debiased=config.debiased
    )
    return sweep.over_checkpoints(one, states, reference, pool, exec=exec)

  cka_clean = compare(classifier, tree.stack([clean_state]))[0]
  results = []
  for deployed, members in _by_classifier(children):
    stack = tree.stack([child.model for child in members])
    for row in compare(deployed, stack):
      results.append(_summary(config, reference, row, cka_clean))
  arrays = {
    'idx_tac': idx_tac,
    'idx_cka': idx_cka,
    **{f'tac/{tap}': v for tap, v in reference.tac.items()},
    **{f'idx/{tap}': v for tap, v in reference.indices.items()},
  }
  return [(values, arrays) for values in results]


def _by_classifier(children):
  """Children grouped by what they deploy, in order of appearance."""
  groups = []
  for child in children:
    if groups and groups[-1][0] is child.classifier:
      groups[-1][1].append(child)
    else:
      groups.append((child.classifier, [child]))
  return groups


def _summary(config, reference, cka_defended, cka_clean) -> dict:
  """The record fields of one defended model."""
  values = jax.device_get(existence.bec(cka_defended, cka_clean))
  return {
    **{k: np.asarray(v).tolist() for k, v in values.items()},
    'cka_defended': np.asarray(cka_defended).tolist(),
    'cka_clean': np.asarray(cka_clean).tolist(),
    'debiased': config.debiased,
  }


def _store(
  config, context, settings, child, run_id, parents, values, arrays, seconds
):
  """Stores one measurement."""
  defended = child.artefact.card
  card = lineage.card(
    'existence',
    config.name,
    run_id,
    config,
    settings,
    defended,
    parents,
    {'bec': values['bec'], 'bec_raw': values['bec_raw']},
  )
  artefact = world.finish(
    context,
    card,
    arrays=arrays,
    config=config.to_dict(),
    metrics=values | {'taps': list(_taps(arrays))},
    record=world.record(
      card,
      **values,
      **world.attack_facts(defended),
      defense=defended.method,
      c_acc=defended.metrics['c_acc'],
      asr=defended.metrics['asr'],
      run_s=seconds,
    ),
  )
  show.done(
    f'{defended.method} {defended.name}: ASR {defended.metrics["asr"]:.4f}, '
    f'BEC {values["bec"]:.4f} (raw {values["bec_raw"]:.4f})'
  )
  return artefact


def _taps(arrays):
  return [name[len('tac/') :] for name in arrays if name.startswith('tac/')]


if __name__ == '__main__':
  cli.run(main, 'configs/existence/bec.py')
