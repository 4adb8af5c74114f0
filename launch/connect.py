"""Walks the straight path from a backdoored model to its defended versions.

python -m launch.connect \
  --config=configs/connectivity/linear.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bdjax import connectivity, eval, keys, sweep, tree, zoo
from launch import cli, lineage, show, world


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Evaluates the path of every defended model that has not been walked.

  Args:
    config: see configs/connectivity/linear.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  made = []
  for family in lineage.families(
    config, context, parents or flags.FLAGS.parents
  ):
    made += _walk(config, context, family)
  return made


def _walk(config, context, family) -> list:
  """All paths of one family, as a stack."""
  names = ('num_points', 'bn_batches', 'bn_batch_size')
  settings = {name: config[name] for name in names}
  victim_id = family.victim.artefact.card.run_id
  roles = {
    c.artefact.card.run_id: (c.artefact.card.run_id, victim_id)
    for c in family.children
  }
  run_ids = {
    name: zoo.run_id(
      'connect',
      config.name,
      1,
      settings,
      family.here.dataset_id,
      config.seed,
      parents,
    )
    for name, parents in roles.items()
  }
  known = {n: world.finished(context, i) for n, i in run_ids.items()}
  todo = [c for c in family.children if known[c.artefact.card.run_id] is None]
  for child in family.children:
    _require_plain(child, family)
    if child not in todo:
      show.done(f'path to {child.artefact.name}: finished before')
  if todo:
    began = time.monotonic()
    paths = _paths(config, family, todo)
    seconds = (time.monotonic() - began) / len(todo)
    for child, path in zip(todo, paths, strict=True):
      name = child.artefact.card.run_id
      known[name] = _store(
        config,
        context,
        settings,
        child,
        run_ids[name],
        roles[name],
        path,
        seconds,
      )
  return list(known.values())


def _require_plain(child, family) -> None:
  """A path in weight space needs a model that is its weights alone."""
  if child.classifier is not family.here.classifier:
    raise ValueError(
      f'{child.artefact.name} deploys more than weights '
      f'({child.artefact.card.method}); a straight path in weight space is not '
      'defined for it. Narrow --parents.'
    )


def _paths(config, family, children) -> list:
  """Curves of each child: {'t', 'naive': {...}, 'recalibrated': {...}}."""
  here, victim = family.here, family.victim
  test = here.dataset.test
  _, triggered, _, targets, _ = lineage.triggered_test(family)

  def evaluate(classifier, state, images, labels, bad, bad_labels):
    counts = eval.count(
      classifier,
      state,
      images,
      labels,
      stamp=victim.stamp,
      relabel=victim.attack.relabel,
      key=world.stamp_key(),
    )
    loss = connectivity.mean_cross_entropy
    return {
      'counts': counts,
      'clean_loss': loss(classifier, state, images, labels),
      'triggered_loss': loss(classifier, state, bad, bad_labels),
    }

  def one(defended, attacked, batches, *data):
    return connectivity.evaluate_path(
      here.classifier,
      attacked,
      defended,
      lambda classifier, state: evaluate(classifier, state, *data),
      batches=batches,
      t=connectivity.positions(config.num_points),
    )

  found = sweep.over_checkpoints(
    one,
    tree.stack([child.model for child in children]),
    victim.model,
    _calibration(config, here),
    jnp.asarray(test.images),
    jnp.asarray(test.labels),
    jnp.asarray(triggered),
    jnp.asarray(targets),
    exec=cli.execution(config),
  )
  return [_rates(path) for path in tree.unstack(jax.device_get(found))]


def _calibration(config, here) -> jax.Array:
  """Clean training images [n, b, h, w, c] for the running statistics."""
  images, size = here.dataset.train.images, config.bn_batch_size
  wanted = config.bn_batches * size
  if wanted > len(images):
    raise ValueError(
      f'`bn_batches={config.bn_batches}` × `bn_batch_size={size}` takes '
      f'{wanted} images of {len(images)}; lower one of them.'
    )
  key = keys.stream(keys.root(config.seed), 'calibration')
  rows = np.asarray(jax.random.permutation(key, len(images)))[:wanted]
  batches = np.asarray(images)[rows].astype(np.float32) / 255
  return jnp.asarray(batches.reshape(-1, size, *images.shape[1:]))


def _rates(path) -> dict:
  """Counts along the path as rates."""
  curves = {'t': np.asarray(path['t'], np.float64)}
  for treatment in ('naive', 'recalibrated'):
    rates = eval.rates(path[treatment]['counts'])
    curves[treatment] = {
      name: np.asarray(rates[name], np.float64)
      for name in ('c_acc', 'asr', 'r_acc')
    } | {
      name: np.asarray(path[treatment][name], np.float64)
      for name in ('clean_loss', 'triggered_loss')
    }
  return curves


def _store(config, context, settings, child, run_id, parents, path, seconds):
  """Stores one path."""
  defended = child.artefact.card
  best = path['recalibrated']
  summary = connectivity.summarize(path['t'], best['c_acc'], best['asr'])
  card = lineage.card(
    'connect', config.name, run_id, config, settings, defended, parents, summary
  )
  fields = {k: summary[k] for k in ('barrier_clean', 'tau_star')}
  artefact = world.finish(
    context,
    card,
    arrays={
      't': path['t'],
      **{
        f'{treatment}/{name}': values
        for treatment in ('naive', 'recalibrated')
        for name, values in path[treatment].items()
      },
    },
    config=config.to_dict(),
    metrics=summary,
    record=world.record(
      card,
      **fields,
      **world.attack_facts(defended),
      defense=defended.method,
      asr=defended.metrics['asr'],
      c_acc=defended.metrics['c_acc'],
      bn_reestimated=True,
      run_s=seconds,
    ),
  )
  star = summary['tau_star']
  show.done(
    f'path to {defended.method} {defended.name}: barrier '
    f'{summary["barrier_clean"]:.4f}, ASR ≥ 0.5 up to t = '
    f'{"nowhere" if star is None else f"{star:.2f}"}'
  )
  return artefact


if __name__ == '__main__':
  cli.run(main, 'configs/connectivity/linear.py')
