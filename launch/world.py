"""From configs and cards to data, classifiers and attacks, and back to disk."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import attacks, data, eval, keys, models, registry, types, zoo
from launch import cli


class World(NamedTuple):
  """Data and network that a run stands on.

  Attributes:
    dataset: the data.
    dataset_id: its identity as the run sees it.
    facts: what a card says of it.
    classifier: the network.
    arch: its registry key.
    arch_options: its options.
  """

  dataset: data.Dataset
  dataset_id: str
  facts: dict[str, Any]
  classifier: types.Classifier
  arch: str
  arch_options: dict[str, Any]

  @property
  def spec(self) -> types.DataSpec:
    """Static facts of the data."""
    return self.dataset.spec

  @property
  def augment(self):
    """The data set's training augmentation."""
    return data.augment_fn(self.spec)


def _identity(dataset: data.Dataset) -> str:
  """Digest of names, sizes and all labels, in order."""
  parts = {
    split: hashlib.sha256(
      np.asarray(part.labels, np.int32).tobytes()
    ).hexdigest()
    for split, part in (('train', dataset.train), ('test', dataset.test))
  }
  shape = dataset.spec.image_shape
  return zoo.digest.digest({'name': dataset.spec.name, 'shape': shape, **parts})


def make(
  name: str,
  arch: str,
  context: cli.Context,
  *,
  num_train: int | None = None,
  num_test: int | None = None,
  arch_options: Mapping[str, Any],
) -> World:
  """Loads the data and builds the network."""
  dataset = data.load(
    name, data_dir=context.data_dir, num_train=num_train, num_test=num_test
  )
  options = {k: v for k, v in arch_options.items() if v is not None}
  given = tuple(sorted(options.items()))
  facts = {
    'num_train': len(dataset.train.labels),
    'num_test': len(dataset.test.labels),
    'subset': {'num_train': num_train, 'num_test': num_test},
  }
  classifier = _classifier(arch, dataset.spec, given)
  return World(dataset, _identity(dataset), facts, classifier, arch, options)


@functools.lru_cache(maxsize=4)
def _classifier(arch, spec, options) -> types.Classifier:
  """One and the same for all stages, so that its programs are compiled once."""
  return models.make(arch, spec, **dict(options))


def of_config(config, context: cli.Context) -> World:
  """The world a training config asks for."""
  arch = config.arch.to_dict()
  return make(
    config.data.name,
    arch.pop('name'),
    context,
    num_train=config.data.num_train,
    num_test=config.data.num_test,
    arch_options=arch,
  )


def of_card(card: zoo.Card, context: cli.Context) -> World:
  """The world an artefact was made in.

  Raises:
    ValueError: if the data at hand are not those the artefact saw.
  """
  world = make(
    card.dataset,
    card.arch,
    context,
    **card.data['subset'],
    arch_options=card.arch_options,
  )
  if world.dataset_id != card.dataset_id:
    raise ValueError(
      f'{card.name} was made with other data of the name {card.dataset} '
      f'({card.data["num_train"]} + {card.data["num_test"]} images; here '
      f'{world.facts["num_train"]} + {world.facts["num_test"]}). Point '
      '--data_dir to the data it was made with.'
    )
  return world


class Victim(NamedTuple):
  """An attacked model's attack, rebuilt.

  Attributes:
    artefact: the attacked artefact, None before it is written.
    attack: the attack's functions.
    state: its state after training.
    model: the backdoored model.
  """

  artefact: zoo.Artefact | None
  attack: types.Attack
  state: types.AttackState
  model: types.ModelState

  def stamp(self, images, key, index):
    """The test-time trigger, bound to its state."""
    return self.attack.stamp(self.state, images, key, index)


def make_attack(name: str, values: Mapping, world: World, assets=None):
  """(attack, resolved hyper-parameters) of a registry key."""
  entry = registry.get(attacks.REGISTRY, name, 'attack')
  hp = registry.make_hparams(entry.hparams, values)
  return entry.make(world.spec, hp, assets or {}), hp


def victim(artefact: zoo.Artefact, world: World) -> Victim:
  """Rebuilds an attacked model with its attack.

  The last ones are kept: programs that hold a trigger are compiled once for
  all stages that ask for the same victim in the same world.
  """
  card = artefact.card
  known = (str(artefact.path), card.time_utc, world.dataset_id)
  if known not in _VICTIMS:
    while len(_VICTIMS) >= _KEPT:
      del _VICTIMS[next(iter(_VICTIMS))]
    _VICTIMS[known] = _rebuilt(artefact, world)
  return _VICTIMS[known]


_VICTIMS: dict[tuple, Victim] = {}
_KEPT = 8


def _rebuilt(artefact: zoo.Artefact, world: World) -> Victim:
  card = artefact.card
  attack, _ = make_attack(card.method, card.hparams['method'], world)
  train = world.dataset.train
  shapes = attack.init(keys.root(0), np.asarray(train.images), train.labels)
  loaded = zoo.load_state(
    artefact, {'model': abstract_model(world), 'attack': shapes}
  )
  return Victim(artefact, attack, loaded['attack'], loaded['model'])


def abstract_model(world: World) -> types.ModelState:
  """Shapes of the network's state."""
  return jax.eval_shape(world.classifier.init, keys.root(0))


def load_model(artefact: zoo.Artefact, world: World) -> types.ModelState:
  """The model of an artefact."""
  shapes = {'model': abstract_model(world)}
  return zoo.load_state(artefact, shapes)['model']


def rates(
  world: World,
  model: types.ModelState,
  victim: Victim | None = None,
  classifier: types.Classifier | None = None,
) -> dict[str, Any]:
  """C-Acc and, with a victim's attack, ASR and R-Acc on the test set."""
  test = world.dataset.test
  return eval.evaluate(
    classifier or world.classifier,
    model,
    jnp.asarray(test.images),
    jnp.asarray(test.labels),
    stamp=victim.stamp if victim else None,
    relabel=victim.attack.relabel if victim else None,
    key=stamp_key() if victim else None,
  )


def triggered_test(world: World, victim: Victim):
  """Test images that the trigger leads away, without and with it.

  Returns:
    (clean uint8, triggered uint8, labels, targets, index in the test set).
  """
  test = world.dataset.test
  labels = np.asarray(test.labels)
  target = np.asarray(victim.attack.relabel(jnp.asarray(labels)))
  index = np.flatnonzero(target != labels)
  clean = np.asarray(test.images)[index]
  stamped = victim.stamp(
    jnp.asarray(clean, jnp.float32) / 255, stamp_key(), jnp.asarray(index)
  )
  stamped = np.rint(np.asarray(stamped) * 255).astype(np.uint8)
  return clean, stamped, labels[index], target[index], index


def poisoned_train(world: World, victim: Victim, size: int = 1000):
  """The training set as the attacker handed it over, before augmentation.

  Args:
    world: data and network.
    victim: the attacked model, whose state says what is poisoned.
    size: images at a time.

  Returns:
    (uint8 images, labels), in the order of the training set.
  """
  train = world.dataset.train
  poison = jax.jit(victim.attack.poison)
  images, labels = [], []
  for first in range(0, len(train.labels), size):
    index = np.arange(first, min(first + size, len(train.labels)))
    batch = {
      'image': jnp.asarray(train.images[index], jnp.float32) / 255,
      'label': jnp.asarray(train.labels[index]),
      'index': jnp.asarray(index),
      'mask': jnp.ones(len(index), bool),
    }
    batch = poison(victim.state, batch, stamp_key())
    images.append(np.rint(np.asarray(batch['image']) * 255).astype(np.uint8))
    labels.append(np.asarray(batch['label']))
  return np.concatenate(images), np.concatenate(labels)


def stamp_key() -> jax.Array:
  """The key of all test-time triggers, the same for every model."""
  return keys.stream(keys.root(0), 'test_trigger')


def card(
  here: World,
  config: Any,
  *,
  run_id: str,
  stage: str,
  method: str,
  settings: dict[str, Any],
  metrics: dict[str, Any],
  attack: dict[str, Any],
  parents: tuple[str, ...] = (),
  facts: dict[str, Any] | None = None,
) -> zoo.Card:
  """The card of a run that has just ended.

  Args:
    here: data and network.
    config: has `seed`.
    run_id: see `zoo.run_id`.
    stage: life-cycle stage.
    method: registry key.
    settings: fully resolved, part of the identity.
    metrics: what was measured.
    attack: facts of the backdoor, {} for a clean model.
    parents: run_ids it starts from.
    facts: what to say of the data; None = the world's.
  """
  return zoo.Card(
    run_id=run_id,
    stage=stage,
    method=method,
    dataset=here.spec.name,
    dataset_id=here.dataset_id,
    arch=here.arch,
    arch_options=here.arch_options,
    num_classes=here.spec.num_classes,
    seed=config.seed,
    parents=parents,
    config_digest=zoo.digest.digest(settings),
    hparams=settings,
    attack=attack,
    data=here.facts if facts is None else facts,
    versions=zoo.environment.versions(),
    metrics=metrics,
    time_utc=zoo.environment.time_utc(),
  )


def attack_facts(victim_card: zoo.Card) -> dict[str, Any]:
  """The record fields that describe the backdoor inside."""
  facts = victim_card.attack
  names = ('attack', 'label_mode', 'target_label', 'poison_ratio', 'num_poison')
  return {name: facts.get(name) for name in names}


def finish(
  context: cli.Context,
  card: zoo.Card,
  *,
  config: Any,
  metrics: Mapping[str, Any],
  record: Mapping[str, Any],
  state: Mapping[str, Any] | None = None,
  arrays: Mapping[str, Any] | None = None,
) -> zoo.Artefact:
  """Writes an artefact, its record, and forgets its progress.

  The record is kept with the artefact as well: a kill between the two writes
  loses nothing, `finished` appends the missing line.
  """
  artefact = zoo.write(
    context.workdir,
    card,
    state=state,
    arrays=arrays,
    config=config,
    metrics={**metrics, 'record': record},
    force=context.force,
  )
  zoo.records.append(context.records, record)
  zoo.Progress(context.workdir, card.run_id).clear()
  return artefact


def record(card: zoo.Card, **fields: Any) -> dict[str, Any]:
  """A record with all that a card knows."""
  facts = {
    name: getattr(card, name)
    for name in (
      'run_id',
      'parents',
      'stage',
      'method',
      'method_version',
      'config_digest',
      'dataset',
      'dataset_id',
      'arch',
      'seed',
    )
  }
  base = {'status': 'done', 'finite': True, 'oracle_used': False}
  return zoo.record(
    **(base | facts | zoo.environment.facts() | {'ckpt_ref': card.name})
    | fields
  )


def finished(context: cli.Context, run_id: str) -> zoo.Artefact | None:
  """The artefact of a run that need not be repeated."""
  if context.force or not zoo.exists(context.workdir, run_id):
    return None
  artefact = zoo.open(context.workdir, run_id)
  known = zoo.records.read(context.records) if context.records.exists() else []
  if all(entry['run_id'] != run_id for entry in known):
    record = zoo.load_metrics(artefact)['record']
    zoo.records.append(context.records, record)
  return artefact
