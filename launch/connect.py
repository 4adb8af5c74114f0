"""Walks straight paths between models, such as from attacked to defended.

python -m launch.connect \
  --config=configs/connectivity/linear.py:dataset=digits16 \
  --parents='defended/digits16/*'

`--config.ends=defended:retuned` and `defended:clean` walk other pairs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import checks, connectivity, eval, keys, sweep, tree, zoo
from launch import cli, lineage, measure, retuning, show, starts, world

ENDS = ('attacked', 'defended', 'retuned', 'clean')
USUAL = 'attacked:defended'


def main(config, context: cli.Context, parents: str | None = None) -> list:
  """Evaluates the path of every defended model that has not been walked.

  Args:
    config: see configs/connectivity/linear.py.
    context: where and how.
    parents: pattern of defended models; None = the flag.

  Returns:
    The artefacts.
  """
  names = ('num_points', 'bn_batches', 'bn_batch_size', 'ends')
  settings = {name: config[name] for name in names}
  ends = _ends(config)
  made = []
  for family in lineage.families(
    config, context, parents or starts.PARENTS.value
  ):
    plain = [child for child in family.children if _is_plain(child, family)]
    family = family._replace(children=plain)
    places = _Places(context, family, ends)
    made += measure.run(
      'connect',
      config,
      context,
      settings,
      family,
      lambda children, p=places: _paths(config, p, children),
      others=places.others,
      variant=None if config.ends == USUAL else config.ends,
    )
  return made


def _ends(config) -> tuple[str, str]:
  """Where paths start and end."""
  parts = config.ends.split(':')
  for part in parts:
    checks.one_of(ENDS, ends=part)
  if len(parts) != 2 or not {'defended', 'retuned'} & set(parts):
    raise ValueError(
      f'`ends={config.ends}` is no pair of which an end depends on the '
      f"defense; use '{USUAL}', 'defended:retuned' or 'defended:clean'."
    )
  return parts[0], parts[1]


class _Places:
  """Where the ends of a family's paths come from."""

  def __init__(self, context, family, ends):
    self.family, self.ends = family, ends
    self.twins = retuning.Twins(context)
    self.clean = None
    if 'clean' in ends:
      self.clean = lineage.clean_model(context, family.here, 'launch.connect')

  def others(self, child) -> tuple[zoo.Artefact, ...]:
    """Artefacts beside the child and its victim."""
    found = [] if self.clean is None else [self.clean[0]]
    if 'retuned' in self.ends:
      found.append(self.twins.of(child))
    return tuple(found)

  def of(self, child) -> tuple:
    """The models at both ends of a child's path."""
    models = {
      'attacked': lambda: self.family.victim.model,
      'defended': lambda: child.model,
      'clean': lambda: self.clean[1] if self.clean else None,
      'retuned': lambda: world.load_model(
        self.twins.of(child), self.family.here
      ),
    }
    start, end = self.ends
    return models[start](), models[end]()


def _is_plain(child, family) -> bool:
  """Whether a model is its weights alone, so that a path is defined for it."""
  plain = child.classifier is family.here.classifier
  if not plain:
    show.done(
      f'{child.artefact.card.method} {child.artefact.name}: left out, it '
      'deploys more than weights'
    )
  return plain


def _paths(config, places, children) -> list:
  """One finding per child, their paths walked as a stack."""
  here, victim = places.family.here, places.family.victim
  found = sweep.over_checkpoints(
    _walk(here.classifier, config.num_points),
    tree.stack([places.of(child) for child in children]),
    _calibration(config, here),
    *here.test,
    victim.shown,
    exec=cli.execution(config),
  )
  paths = tree.unstack(jax.device_get(found))
  return [
    _finding(config.ends, child, _rates(path))
    for child, path in zip(children, paths, strict=True)
  ]


@functools.lru_cache(maxsize=4)
def _walk(classifier, num_points):
  """(ends, batches, images, labels, shown) -> counts along a path."""

  def walk(ends, batches, images, labels, shown):
    start, end = ends
    return connectivity.evaluate_path(
      classifier,
      start,
      end,
      lambda classifier, state: eval.count(
        classifier, state, images, labels, shown=shown, with_loss=True
      ),
      batches=batches,
      t=connectivity.positions(num_points),
    )

  return walk


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


def _finding(ends, child, path) -> measure.Finding:
  """What the recalibrated path says, and all its curves."""
  best = path['recalibrated']
  summary = connectivity.summarize(path['t'], best['c_acc'], best['asr'])
  curves = {
    f'{treatment}/{name}': values
    for treatment in ('naive', 'recalibrated')
    for name, values in path[treatment].items()
  }
  star = summary['tau_star']
  card = child.artefact.card
  line = (
    f'{ends} of {card.method} {card.name}: barrier '
    f'{_shown(summary["barrier_clean"])}, backdoor error '
    f'{_shown(summary["backdoor_error_auc"])} on average, ASR ≥ 0.5 up to t = '
    f'{"nowhere" if star is None else f"{star:.2f}"}'
  )
  return measure.Finding(
    summary | {'bn_reestimated': True},
    line,
    summary,
    {'t': path['t'], **curves},
  )


def _shown(value: float | None) -> str:
  """Four decimals; 'not finite' where a path has left the numbers."""
  return 'not finite' if value is None else f'{value:.4f}'


if __name__ == '__main__':
  cli.run(main, 'configs/connectivity/linear.py')
