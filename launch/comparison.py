"""Is it the backdoor that was re-activated? The published comparison.

OBA is the original attack (trigger on the attacked model), RBA the re-activated
one (trigger and perturbation on the defended model), gUAA a general universal
adversarial attack (perturbation without a trigger on the defended model). Two
questions beside their success: do they act by the same neurons, and do they
survive noise?
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import eval, existence, keys, reactivation
from launch import world

NUM_TAC = 2200  # pairs that the backdoor neurons are found on, at most
controls = reactivation.controls


class Compared(NamedTuple):
  """What the comparison found out about one defended model.

  Attributes:
    metrics: numbers for metrics.json.
    arrays: curves over noise amplitudes.
  """

  metrics: dict[str, Any]
  arrays: dict[str, np.ndarray]


def compare(attack, child, result) -> Compared:
  """Mechanism and robustness of OBA, RBA and gUAA on one defended model.

  Args:
    attack: a `perturbing.Attack` whose config has `noise` and `num_cka`.
    child: the defended model.
    result: by setting what was learned and measured, as there.

  Returns:
    'mechanism' {rba, guaa}: mean CKA with the original attack's features at
    the backdoor neurons; 'noise' with the success of all three at each
    amplitude.
  """
  rba, guaa = result['reactivated_asr'], result['control_clean_input_asr']
  noise = np.asarray(attack.noise, np.float32)
  survived = {
    'oba': _survival(attack, attack.family.here.classifier, None, None, noise),
    'rba': _survival(attack, child.classifier, child.model, rba, noise),
    'guaa': _survival(
      attack, child.classifier, child.model, guaa, noise, is_clean=True
    ),
  }
  arrays = {'noise/amplitude': noise}
  arrays |= {f'noise/{name}': np.asarray(v) for name, v in survived.items()}
  return Compared(
    {
      'mechanism': _mechanism(attack, child, rba, guaa),
      'noise': {name: list(values) for name, values in survived.items()},
    },
    arrays,
  )


def _survival(attack, classifier, model, found, noise, is_clean=False):
  """Success of one of the three under noise of each amplitude."""
  stamp = lambda images, key, index: images
  if found is not None:
    stamp = controls.perturbed_stamp(
      None, found['run'].method.trigger, found['trigger']
    )
  model = attack.family.victim.model if model is None else model

  @jax.jit
  def count(amplitude, model, images, labels, shown):
    return eval.count(
      classifier,
      model,
      images,
      labels,
      stamp=controls.noisy_stamp(stamp, amplitude),
      key=world.stamp_key(),
      shown=shown,
      with_clean=False,
    )

  test = attack.family.here.test
  shown = attack.below('clean' if is_clean else 'triggered')
  return [
    eval.rates(jax.device_get(count(jnp.float32(a), model, *test, shown)))[
      'asr'
    ]
    for a in noise
  ]


def _mechanism(attack, child, rba, guaa) -> dict[str, float]:
  """Mean CKA of RBA and of gUAA with the features of the original attack."""
  family = attack.family
  clean, stamped, *_ = world.triggered_test(family.here, family.victim)
  pairs, shown = existence.draw_indices(
    attack.key,
    len(clean),
    num_tac=min(NUM_TAC, len(clean)),
    num_cka=attack.config.num_cka,
  )
  reference = existence.reference(
    family.here.classifier,
    family.victim.model,
    jnp.asarray(clean[pairs]),
    jnp.asarray(stamped[pairs]),
    jnp.asarray(stamped[shown]),
  )
  similarity = functools.partial(
    existence.similarity, child.classifier, reference, child.model
  )
  measured = {
    'rba': similarity(_perturbed(rba, stamped[shown])),
    'guaa': similarity(_perturbed(guaa, clean[shown])),
  }
  return {name: float(jnp.mean(cka)) for name, cka in measured.items()}


def _perturbed(found, images) -> jax.Array:
  """Byte images with what was learned on top, float in [0, 1]."""
  trigger, params = found['run'].method.trigger, found['trigger']
  images = jnp.asarray(images, jnp.float32) / 255
  return jax.vmap(lambda x: trigger.apply(params, x, keys.root(0)))(images)
