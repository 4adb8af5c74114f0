"""Walks the straight path from a backdoored model to its defended versions.

python -m launch.connect \
  --config=configs/connectivity/linear.py:dataset=digits16 \
  --parents='defended/digits16/*'
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from bdjax import connectivity, eval, keys, sweep, tree
from launch import cli, lineage, measure, show, world


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Evaluates the path of every defended model that has not been walked.

  Args:
    config: see configs/connectivity/linear.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  names = ('num_points', 'bn_batches', 'bn_batch_size')
  settings = {name: config[name] for name in names}
  made = []
  for family in lineage.families(
    config, context, parents or flags.FLAGS.parents
  ):
    plain = [child for child in family.children if _is_plain(child, family)]
    family = family._replace(children=plain)
    made += measure.run(
      'connect',
      config,
      context,
      settings,
      family,
      lambda children, family=family: _paths(config, family, children),
    )
  return made


def _is_plain(child, family) -> bool:
  """Whether a model is its weights alone, so that a path is defined for it."""
  plain = child.classifier is family.here.classifier
  if not plain:
    show.done(
      f'{child.artefact.card.method} {child.artefact.name}: left out, it '
      'deploys more than weights'
    )
  return plain


def _paths(config, family, children) -> list:
  """One finding per child, their paths walked as a stack."""
  here, victim = family.here, family.victim
  test = here.dataset.test

  def evaluate(classifier, state, images, labels):
    return eval.count(
      classifier,
      state,
      images,
      labels,
      stamp=victim.stamp,
      relabel=victim.attack.relabel,
      key=world.stamp_key(),
      with_loss=True,
    )

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
    exec=cli.execution(config),
  )
  paths = tree.unstack(jax.device_get(found))
  return [
    _finding(child, _rates(path))
    for child, path in zip(children, paths, strict=True)
  ]


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
  """Curves {'t', 'naive': {...}, 'recalibrated': {...}} from counts."""
  curves: dict = {'t': np.asarray(path['t'], np.float64)}
  for treatment in ('naive', 'recalibrated'):
    rates = eval.rates(path[treatment])
    names = ('c_acc', 'asr', 'r_acc', 'clean_loss', 'attack_loss')
    curves[treatment] = {n: np.asarray(rates[n], np.float64) for n in names}
  return curves


def _finding(child, path) -> measure.Finding:
  """What the recalibrated path says, and all its curves."""
  best = path['recalibrated']
  summary = connectivity.summarize(path['t'], best['c_acc'], best['asr'])
  record = {name: summary[name] for name in ('barrier_clean', 'tau_star')}
  curves = {
    f'{treatment}/{name}': values
    for treatment in ('naive', 'recalibrated')
    for name, values in path[treatment].items()
  }
  star = summary['tau_star']
  card = child.artefact.card
  line = (
    f'path to {card.method} {card.name}: barrier '
    f'{summary["barrier_clean"]:.4f}, ASR ≥ 0.5 up to t = '
    f'{"nowhere" if star is None else f"{star:.2f}"}'
  )
  return measure.Finding(
    record | {'bn_reestimated': True}, line, summary, {'t': path['t'], **curves}
  )


if __name__ == '__main__':
  cli.run(main, 'configs/connectivity/linear.py')
