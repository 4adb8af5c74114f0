"""Dormant backdoors of the toy world, and the same models after retuning."""

import functools

import jax

from bdjax import defenses, sweep, training, tree, types
from bdjax.reactivation import pools
from bdjax.reactivation.retuning_attack import (
  RetuningAttackHParams,
  retuning_attack,
)
from tests import toy

KEY = jax.random.key(0)
DORMANT = defenses.FtHParams(lr=1.0, epochs=20, batch_size=32)
RETUNING = dict(split_ratio=0.1, batch_size=16, lr=0.1)


@functools.cache
def sleeping() -> types.ModelState:
  """The three victims after fine-tuning."""
  return toy.defend('ft', DORMANT).model


def feed(i, poison_num) -> training.Feed:
  """The retuning pool with the trigger of victim i."""
  pool = pools.retuning(
    KEY,
    toy.attack(),
    toy.victims()[i].state,
    *toy.dataset().train,
    split_ratio=RETUNING['split_ratio'],
    poison_num=poison_num,
  )
  return training.make_feed(pool.images, pool.labels)


@functools.cache
def retuned(poison_num: int = 5) -> types.ModelState:
  """The three dormant models after retuning, and then the clean model."""
  hp = RetuningAttackHParams(poison_num=poison_num, **RETUNING)
  phases = retuning_attack(toy.classifier(), hp, toy.augment()).phases

  def run(member):
    carry = types.Carry(model=member['model'], extra={})
    feeds = {'pool': member['feed']}
    return training.run_phases(phases, carry, feeds, KEY)[0].model

  members = [
    {'model': tree.take(sleeping(), i), 'feed': feed(i, poison_num)}
    for i in range(toy.SEEDS)
  ]
  members.append({'model': toy.clean_model(), 'feed': feed(0, poison_num)})
  return sweep.over_checkpoints(run, tree.stack(members))
