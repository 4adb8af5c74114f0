"""From configs and cards to data, classifiers and attacks."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import attacks, data, eval, keys, models, registry, types, zoo
from launch import cli, imported


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
    return _augment(self.spec)

  @property
  def test(self) -> tuple[jax.Array, jax.Array]:
    """Images and labels of the test set, on the device."""
    images, labels = self.dataset.test
    return jnp.asarray(images), jnp.asarray(labels)


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


@functools.lru_cache(maxsize=4)
def _augment(spec):
  """One and the same for all stages, as the network."""
  return data.augment_fn(spec)


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


@dataclasses.dataclass(frozen=True, eq=False)
class Victim:
  """An attacked model's attack, rebuilt.

  Attributes:
    world: data and network.
    artefact: the attacked artefact, None before it is written.
    attack: the attack's functions.
    state: its state after training.
    model: the backdoored model.
  """

  world: World
  artefact: zoo.Artefact | None
  attack: types.Attack
  state: types.AttackState
  model: types.ModelState

  def stamp(self, images, key, index):
    """The test-time trigger, bound to its state."""
    return self.attack.stamp(self.state, images, key, index)

  def cross(self, images, key, index):
    """Other triggers than the images' own, of an attack that has such."""
    assert self.attack.cross is not None
    return self.attack.cross(self.state, images, key, index)

  @functools.cached_property
  def shown(self) -> eval.Triggered:
    """The test set as this attack shows it; programs take it as data."""
    return eval.triggered(
      *self.world.test,
      stamp=self.stamp,
      relabel=self.attack.relabel,
      cross=self.cross if self.attack.cross is not None else None,
      key=stamp_key(),
    )


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
  if imported.is_imported(card):
    attack, state = imported.attack_of(
      card.hparams['imported'], zoo.load_arrays(artefact), world.dataset
    )
    return Victim(world, artefact, attack, state, load_model(artefact, world))
  attack, _ = make_attack(
    card.method, card.hparams['method'], world, _stand_ins(card)
  )
  train = world.dataset.train
  shapes = attack.init(keys.root(0), np.asarray(train.images), train.labels)
  loaded = zoo.load_state(
    artefact, {'model': abstract_model(world), 'attack': shapes}
  )
  return Victim(world, artefact, attack, loaded['attack'], loaded['model'])


def _stand_ins(card: zoo.Card) -> dict[str, np.ndarray]:
  """Arrays of the assets' shapes, of ones and without memory of their own.

  What an attack takes from its assets lies in its state, which is loaded; they
  only have to be there for it to be made.
  """
  return {
    name: np.broadcast_to(np.ones((), facts['dtype']), facts['shape'])
    for name, facts in card.hparams.get('assets', {}).items()
    if isinstance(facts, dict)  # older cards have the digest alone
  }


def abstract_model(world: World) -> types.ModelState:
  """Shapes of the network's state."""
  return _abstract(world.classifier.init)


@functools.lru_cache(maxsize=8)
def _abstract(init) -> types.ModelState:
  """Traced once per network, not once per model that is read."""
  return jax.eval_shape(init, keys.root(0))


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
  """C-Acc and, with a victim's attack, ASR, R-Acc and any cross rates."""
  shown = victim.shown if victim is not None else None
  return eval.evaluate(
    classifier or world.classifier, model, *world.test, shown=shown
  )


def triggered_test(world: World, victim: Victim, num: int | None = None):
  """Test images that the trigger leads away, without and with it.

  Args:
    world: data and network.
    victim: whose trigger.
    num: only the first ones.

  Returns:
    (clean uint8, triggered uint8, labels, targets, index in the test set).
  """
  test = world.dataset.test
  labels, target = np.asarray(test.labels), np.asarray(victim.shown.targets)
  index = np.flatnonzero(target != labels)[:num]
  clean = np.asarray(test.images)[index]
  stamped = np.asarray(victim.shown.images)[index]
  stamped = np.rint(stamped * 255).astype(np.uint8)
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
  # Which slots of a batch are poisoned may not depend on the classes' order.
  order = np.random.default_rng(0).permutation(len(train.labels))
  images, labels = [], []
  for first in range(0, len(order), size):
    index = order[first : first + size]
    batch = {
      'image': jnp.asarray(train.images[index], jnp.float32) / 255,
      'label': jnp.asarray(train.labels[index]),
      'index': jnp.asarray(index),
      'mask': jnp.ones(len(index), bool),
    }
    batch = poison(victim.state, batch, stamp_key())
    images.append(np.rint(np.asarray(batch['image']) * 255).astype(np.uint8))
    labels.append(np.asarray(batch['label']))
  back = np.argsort(order)
  return np.concatenate(images)[back], np.concatenate(labels)[back]


def stamp_key() -> jax.Array:
  """The key of all test-time triggers, the same for every model."""
  return keys.stream(keys.root(0), 'test_trigger')
