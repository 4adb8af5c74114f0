"""Adversarial training: descent on images perturbed against the model."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bdjax import checks, keys, perturb, types
from bdjax.training import losses, phases


@types.hparams
class AdversaryHParams:
  """The adversary in the loop; the defaults are those of ℓ∞ PGD training.

  Attributes:
    eps: radius of the perturbations, linf in [0, 1] units.
    step_size: of one step, in [0, 1] units.
    num_steps: steps per image; 0 = no adversary, plain training.
  """

  eps: float = 8 / 255
  step_size: float = 2 / 255
  num_steps: int = 10


def adversarial(
  classifier: types.Classifier,
  optimizer: optax.GradientTransformationExtraArgs,
  hp: AdversaryHParams,
  **length: Any,
) -> types.Phase:
  """Training on the images of a batch at their worst.

    min_θ E max_{‖δ‖∞ ≤ ε} CE(f_θ(x + δ), y)

  The perturbations start at random in the ball and climb the loss of the model
  as it stands, frozen-BN; the step is taken on them alone, train-BN.

  Args:
    classifier: the network.
    optimizer: see `phases.descent`.
    hp: the adversary.
    **length: the remaining fields of the `Phase`.

  Returns:
    The phase; with `num_steps=0` that of `phases.supervised`.

  Raises:
    ValueError: if a size or a count is negative.

  References:
    Madry et al., Towards Deep Learning Models Resistant to Adversarial
    Attacks, ICLR 2018.
  """
  checks.non_negative(num_steps=hp.num_steps, step_size=hp.step_size)
  checks.pixel_budget('linf', eps=hp.eps)
  if not hp.num_steps:
    return phases.supervised(classifier, optimizer, **length)

  def prepare(extra, model, batch, clock):
    images = batch['image']
    draw = lambda key: jax.random.uniform(
      key, images.shape[1:], minval=-1.0, maxval=1.0
    )
    key = keys.stream(clock.key, 'adversary')
    start = hp.eps * jax.vmap(draw)(keys.per_example(key, batch['index']))
    gain = lambda deltas: (
      -losses.cross_entropy(
        classifier.apply(model, images + deltas)[0], batch['label']
      )
    )
    deltas = perturb.sign_descent(
      gain,
      jnp.clip(images + start, 0, 1) - images,
      step_size=hp.step_size,
      eps=hp.eps,
      norm='linf',
      num_steps=hp.num_steps,
      images=images,
    )
    return extra, {**batch, 'image': jnp.clip(images + deltas, 0, 1)}

  def objective(model, extra, batch, clock):
    del extra, clock
    logits, model = classifier.apply(model, batch['image'], train=True)
    return losses.cross_entropy(logits, batch['label']), (logits, model)

  passes = {'grad_passes': hp.num_steps + 1}
  return phases.descent(
    objective, optimizer, prepare=prepare, **(passes | length)
  )
