"""The toy world that tests share: built once per process, seconds on a CPU.

Four classes of 8×8×3 images, the two-convolution net, an attack, three seeds
of it trained as one program, a clean model beside them and a defended stack.
Everything goes through the public API.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bdjax import (
  attacks,
  data,
  defenses,
  eval,
  keys,
  models,
  registry,
  sweep,
  training,
  tree,
  types,
)

SEEDS = 3
RECIPE = training.RecipeHParams(epochs=4, batch_size=32, lr=0.1)
# Attacks that take longer.
EPOCHS = dict.fromkeys(('blended', 'ftrojan', 'sig', 'ctrl', 'blind'), 8)
EPOCHS |= {'wanet': 12, 'bpp': 12, 'lf': 20}
EPOCHS |= {'ssba': 8, 'input_aware': 14, 'lira': 14}
CLEAN_RATIO = 0.05
# Clean-label triggers whose published strength these easy classes outweigh:
# nearly all of the class has to carry a stronger one. Networks that are crafted
# in seconds.
HPARAMS: dict[str, dict] = {
  'sig': dict(poison_ratio=0.2, amplitude=0.5, amplitude_test=0.5),
  'ctrl': dict(poison_ratio=0.23, magnitude=500.0),
  'blind': dict(history=20),
  'lira': dict(
    eps=0.3, lr_generator=0.003, lr_model=0.1, trigger_epochs=6, width=8
  ),
  # A dozen images of each kind per batch, and masks that may cover more.
  'input_aware': dict(
    mask_epochs=4,
    widths=(8, 16),
    num_others=100,
    poison_ratio=0.25,
    lambda_norm=10.0,
    mask_density=0.2,
    lr_generator=0.003,
  ),
  # The classes are stripes with noise. Slightly displaced ones are like others,
  # so that this net does not tell noise on a grid from the grid.
  'wanet': dict(strength=4.0, poison_ratio=0.2, cross_ratio=0.5),
  'bpp': dict(squeeze_num=4, poison_ratio=0.2),
  'ssba': dict(
    num_bits=8,
    width=16,
    residual=True,
    craft_epochs=20,
    craft_batch_size=32,
    craft_lr=2e-3,
    ramp_start=50,
    ramp_length=150,
  ),
  'poison_ink': dict(
    width=8,
    reveal_width=16,
    stages=('none',),
    craft_epochs=10,
    craft_lr=2e-3,
  ),
}


class Victims(NamedTuple):
  """Backdoored models; a stack of `SEEDS`, or one of them.

  Attributes:
    name: registry key of the attack.
    state: its state after training.
    model: the models.
  """

  name: str
  state: types.AttackState
  model: types.ModelState

  def __getitem__(self, i: int) -> 'Victims':
    """Member i of the stack."""
    return Victims(self.name, *tree.take((self.state, self.model), i))


@functools.cache
def dataset() -> data.Dataset:
  return data.load('synthetic')


@functools.cache
def classifier() -> types.Classifier:
  return models.make('tiny', dataset().spec)


@functools.cache
def augment():
  return data.augment_fn(dataset().spec)


@functools.cache
def attack(name: str = 'badnets') -> types.Attack:
  """An attack of the registry; by default its hyper-parameters are, too."""
  entry = registry.get(attacks.REGISTRY, name, 'attack')
  hp = entry.hparams(**HPARAMS.get(name, {}))
  return entry.make(dataset().spec, hp, assets(name))


@functools.cache
def assets(name: str) -> dict:
  """What the attack cannot do without, crafted with the clean model."""
  if name not in attacks.CRAFTERS:
    return {}
  entry = registry.get(attacks.REGISTRY, name, 'attack')
  hp = entry.hparams(**HPARAMS.get(name, {}))
  return attacks.CRAFTERS[name].craft(
    keys.root(0), classifier(), clean_model(), *dataset().train, hp
  )


@functools.cache
def train_feed() -> training.Feed:
  return training.make_feed(*dataset().train)


@functools.cache
def clean_feed(seed: int = 0, ratio: float = CLEAN_RATIO) -> training.Feed:
  """The defender's class-balanced reserve."""
  train = dataset().train
  index = data.reserve_clean(
    keys.root(seed), train.labels, ratio, sampler='class_balanced'
  )
  return training.make_feed(*train, index)


def _length(name: str, epochs: int = RECIPE.epochs) -> dict:
  return dict(
    name=name,
    num_epochs=epochs,
    batch_size=RECIPE.batch_size,
    reads='train',
  )


def _seeds() -> jax.Array:
  return sweep.member_keys(keys.root(0), SEEDS, shared=False)


@functools.cache
def victims(name: str = 'badnets') -> Victims:
  """Three seeds of an attack, trained as one program."""
  images, labels = dataset().train
  seeds, method = _seeds(), attack(name)
  state = jax.vmap(
    lambda key: method.init(keys.stream(key, 'attack'), images, labels)
  )(seeds)
  phases = training.attack_phases(
    classifier(),
    method,
    training.optimizer(RECIPE),
    augment=augment(),
    **_length('implant', EPOCHS.get(name, RECIPE.epochs)),
  )
  carry, _ = training.run_phases(
    phases,
    types.Carry(model=_initial(seeds), extra=state),
    {'train': train_feed()},
    seeds,
    augment=augment(),
    lift=sweep.lift,
  )
  return Victims(name, carry.extra, carry.model)


def victim(name: str = 'badnets') -> Victims:
  """One backdoored checkpoint: the first of the three."""
  return victims(name)[0]


def _initial(seeds: jax.Array) -> types.ModelState:
  """Initial weights of a stack, drawn one after the other."""
  draws = [classifier().init(keys.stream(key, 'init')) for key in seeds]
  return tree.stack(draws)


@functools.cache
def clean_model() -> types.ModelState:
  """The same recipe without an attack."""
  phase = training.supervised(
    classifier(), training.optimizer(RECIPE), augment=True, **_length('train')
  )
  key = keys.root(0)
  model = classifier().init(keys.stream(key, 'init'))
  carry, _ = training.run_phases(
    (phase,),
    types.Carry(model=model, extra={}),
    {'train': train_feed()},
    key,
    augment=augment(),
  )
  return carry.model


@functools.cache
def poisoned_train(name: str = 'badnets') -> training.Feed:
  """The training sets as their victims' attackers left them; a stack.

  They are what reaches a defender, uint8 before any augmentation.
  """
  images, labels = dataset().train
  method, num = attack(name), len(labels)

  @jax.jit
  def poison(state, key):
    batch = {
      'image': jnp.asarray(images, jnp.float32) / 255,
      'label': jnp.asarray(labels, jnp.int32),
      'index': jnp.arange(num),
      'mask': jnp.ones(num, bool),
    }
    batch = method.poison(state, batch, key)
    levels = jnp.round(255 * batch['image']).astype(jnp.uint8)
    return training.Feed(
      images=levels, labels=batch['label'], index=jnp.arange(num)
    )

  return jax.vmap(poison)(victims(name).state, _seeds())


def make_defense(name: str, hp, victim: Victims) -> types.Defense:
  """A method on the toy's network, with the victim's trigger if it needs it."""
  entry = registry.get(defenses.REGISTRY, name, 'defense')
  if 'trigger_known' not in entry.info.needs:
    return entry.make(classifier(), hp)
  stamp = functools.partial(attack(victim.name).stamp, victim.state)
  return entry.make(classifier(), hp, stamp=stamp)


@functools.cache
def defense_program(name: str, attack_name: str = 'badnets'):
  """{'model', 'state', 'hp'} of each member -> its carry, compiled once.

  Members may bring feeds of their own.
  """

  def run(member, feed, key):
    carry = types.Carry(model=member['model'], extra={})
    victim = Victims(attack_name, member['state'], member['model'])
    phases = make_defense(name, member['hp'], victim).phases
    feeds = {'clean': feed, **member['feeds']}
    return training.run_phases(phases, carry, feeds, key, augment=augment())[0]

  return sweep.lift(run)


def defend(name: str, hp, attack_name: str = 'badnets') -> types.Carry:
  """The three victims after a defense, as one program."""
  needs = registry.get(defenses.REGISTRY, name, 'defense').info.needs
  feeds = {}
  if 'poisoned_train_set' in needs:
    feeds['train'] = poisoned_train(attack_name)
  stack = {
    'model': victims(attack_name).model,
    'state': victims(attack_name).state,
    'hp': tree.broadcast(jax.tree.map(jnp.float32, hp), SEEDS),
    'feeds': feeds,
  }
  return defense_program(name, attack_name)(stack, clean_feed(), keys.root(0))


@functools.cache
def _count(name: str | None, network: types.Classifier):
  """The jitted counts of a model and, with an attack, of its trigger."""
  images, labels = dataset().test

  @jax.jit
  def count(model, state):
    if name is None:
      return eval.count(network, model, images, labels)
    method = attack(name)
    return eval.count(
      network,
      model,
      images,
      labels,
      stamp=lambda x, key, index: method.stamp(state, x, key, index),
      relabel=method.relabel,
      key=keys.stream(keys.root(0), 'test_trigger'),
    )

  return count


def evaluate(
  model: types.ModelState,
  victim: Victims | None = None,
  network: types.Classifier | None = None,
) -> dict:
  """Rates on the test set, with the victim's trigger where one is given."""
  name, state = (victim.name, victim.state) if victim else (None, None)
  return eval.rates(_count(name, network or classifier())(model, state))


def evaluate_stack(model: types.ModelState, victims: Victims) -> list[dict]:
  """Rates of every member of a stack with the trigger of its victim."""
  return [
    evaluate(tree.take(model, i), victims[i])
    for i in range(tree.stack_size(model))
  ]
