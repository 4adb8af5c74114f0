"""Assets of an attack: read from files, or crafted once and kept.

What `--config.assets.NAME=PATH` names is read. What an attack cannot do
without is crafted (`attacks.CRAFTERS`): with a clean model of the same data
and network, which is trained as `launch.train` does unless the workdir has it.
Crafted arrays are kept in the workdir under the digest of their recipe.
"""

from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from bdjax import attacks, data, keys, registry, zoo
from launch import cli, show, train, world


class Assets(NamedTuple):
  """What a run takes.

  Attributes:
    arrays: {name: array}, for the attack's factory.
    settings: what enters the run's identity: of each asset digest, shape and
      dtype, and the run of the model it was crafted with; {} without assets.
  """

  arrays: dict[str, np.ndarray]
  settings: dict[str, Any]


def of_run(config, context: cli.Context, here: world.World) -> Assets:
  """Reads or crafts all that an attack takes.

  Args:
    config: has `name`, `method` and `assets`; where a clean model may be
      needed, `clean` with its recipe and, if it is not the run's, its seed.
    context: where and how; `force` crafts anew, but trains no model anew.
    here: data and network.

  Returns:
    The assets.

  Raises:
    FileNotFoundError: if a file is not there.
    ValueError: if a file is no picture and no array.
  """
  given = {
    name: data.read_picture(path, name)
    for name, path in config.get('assets', {}).items()
    if path
  }
  facts = {k: _facts(v, zoo.assets.digest_of(v)) for k, v in given.items()}
  entry = registry.get(attacks.REGISTRY, config.name, 'attack')
  hp = registry.make_hparams(entry.hparams, config.method)
  crafter = attacks.CRAFTERS.get(config.name)
  if crafter is None or not crafter.is_wanted(hp):
    return Assets(given, {'assets': facts} if facts else {})
  if given.keys() >= set(crafter.makes):
    return Assets(given, {'assets': facts})
  return _crafted(config, context, here, _Job(crafter, hp, given, facts))


class _Job(NamedTuple):
  """What to craft, and what is there already."""

  crafter: attacks.Crafter
  hp: Any
  given: dict[str, np.ndarray]
  facts: dict[str, Any]


def _crafted(config, context, here, job: _Job) -> Assets:
  """The given assets and those that the crafter makes."""
  clean, settings = None, {}
  if job.crafter.needs == 'clean_model':
    clean = _clean_model(config, context)
    settings = {'clean_model': clean.card.run_id}
  recipe = {
    'attack': config.name,
    'version': job.crafter.version,
    'hparams': {name: getattr(job.hp, name) for name in job.crafter.reads},
    'given': {name: facts['digest'] for name, facts in job.facts.items()},
    'dataset_id': here.dataset_id,
    'seed': _seed(config),
    **settings,
  }
  name = zoo.assets.name_of(recipe)
  made = None if context.force else zoo.assets.read(context.workdir, name)
  if made is None:
    made = _craft(config, here, clean, job)
    zoo.assets.write(context.workdir, recipe, made)
    what = f' with {clean.name}' if clean else ''
    show.done(f'assets/{name} of {config.name}: crafted{what}')
  facts = {k: _facts(v, name) for k, v in made.items()} | job.facts
  return Assets(made | job.given, {'assets': facts, **settings})


def _craft(config, here, clean: zoo.Artefact | None, job: _Job) -> dict:
  """Calls the crafter."""
  train_set = here.dataset.train
  return job.crafter.craft(
    keys.stream(keys.root(_seed(config)), 'craft'),
    here.classifier if clean else None,
    world.load_model(clean, here) if clean else None,
    train_set.images,
    np.asarray(train_set.labels),
    job.hp,
    job.given,
  )


def _clean_model(config, context: cli.Context) -> zoo.Artefact:
  """A clean model of the run's own data and network, trained if need be."""
  if 'clean' not in config:
    raise ValueError(
      f"'{config.name}' is crafted with a clean model, and its config has no "
      f'`clean` that says how one is trained; see configs/attacks/lf.py.'
    )
  own = config.clean.copy_and_resolve_references()
  with own.unlocked():
    own.seed = _seed(config)
    own.data, own.arch = config.data.copy_and_resolve_references(), config.arch
  # The model is an asset of many runs; forcing one of them leaves it alone.
  return train.main(own, context._replace(force=False))


def _seed(config) -> int:
  """Seed of the clean model and of the crafting."""
  own = config.get('clean', config_dict.ConfigDict()).get('seed')
  return config.seed if own is None else own


def _facts(array: np.ndarray, digest: str) -> dict[str, Any]:
  """What a card says of an asset."""
  return {
    'digest': digest,
    'shape': list(array.shape),
    'dtype': array.dtype.name,
  }
