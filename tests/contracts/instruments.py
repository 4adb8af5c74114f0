"""What is run on the model of every attack: two defenses, two instruments.

They see an attack through images and a stamp alone, so that their programs
are compiled once for all attacks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import defenses, existence, keys, reactivation, training, types
from tests import toy

KEY = keys.root(0)
NUM = 64  # images of each instrument
HPARAMS = {
  'ft': dict(epochs=2, batch_size=32),
  'ft_sam': dict(epochs=2, batch_size=32),
  'white_box': dict(outer_epochs=2, pool_size=NUM, batch_size=32),
}


def tuned(name: str, model: types.ModelState) -> types.ModelState:
  """A model after a defense."""
  return _defense(name)(model, toy.clean_feed())


@functools.cache
def _defense(name):
  entry = defenses.REGISTRY[name]
  phases = entry.make(toy.classifier(), entry.hparams(**HPARAMS[name])).phases

  @jax.jit
  def run(model, feed):
    carry = types.Carry(model=model, extra={})
    return training.run_phases(
      phases, carry, {'clean': feed}, KEY, augment=toy.augment()
    )[0].model

  return run


def coefficient(
  victim: toy.Victims, model: types.ModelState
) -> dict[str, jax.Array]:
  """Backdoor existence coefficient of a model defended against an attack."""
  attack, (images, labels) = toy.attack(victim.name), toy.dataset().test
  goal = np.asarray(attack.relabel(jnp.asarray(labels)))
  index = np.flatnonzero(goal != labels)[:NUM]
  clean = jnp.asarray(images[index], jnp.float32) / 255
  triggered = attack.stamp(victim.state, clean, KEY, jnp.asarray(index))
  return _bec()(victim.model, model, toy.clean_model(), clean, triggered)


@functools.cache
def _bec():
  classifier = toy.classifier()

  @jax.jit
  def run(attacked, defended, clean_model, clean, triggered):
    reference = existence.reference(
      classifier, attacked, clean, triggered, triggered
    )
    like = lambda model: existence.similarity(
      classifier, reference, model, triggered
    )
    return existence.bec(like(defended), like(clean_model))

  return run


def woken(victim: toy.Victims, model: types.ModelState) -> types.PyTree:
  """What white-box re-activation puts on top of an attack's trigger."""
  pool = reactivation.controls.pool_of(
    'triggered',
    KEY,
    toy.attack(victim.name),
    victim.state,
    *toy.dataset().train,
    NUM,
  )
  return _white_box()(model, training.make_feed(pool.images, pool.labels))


@functools.cache
def _white_box():
  entry = reactivation.REGISTRY['white_box']
  hp = entry.hparams(**HPARAMS['white_box'])
  phases = entry.make(toy.classifier(), hp).phases

  @jax.jit
  def run(model, feed):
    carry = types.Carry(model=model, extra={})
    return training.run_phases(phases, carry, {'pool': feed}, KEY)[0].extra

  return run
