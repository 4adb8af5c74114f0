"""FST: fine-tunes with a fresh classifier that is pushed off the old one.

With W₀ the backdoored linear classifier and W, b ~ U(−1/√d, 1/√d) a fresh one:

  min CE + α·⟨W, W₀⟩_F    subject to    ‖W‖_F = ‖W₀‖_F

Features must follow the classifier, and those of the trigger, which no clean
image holds in place, are left behind.

1. Draw the fresh classifier.
2. One step of SGD with momentum on all parameters, on an augmented batch.
3. W ← W·‖W₀‖/‖W‖; the bias and the momentum are left alone.

`mode` selects the method or one of the baselines it is compared with, all of
which minimize CE without a constraint:

  fst        as above
  ft_init    fresh classifier, all parameters are tuned
  fe_tuning  fresh classifier that stays; the others are tuned
  lp         linear probing: the classifier is tuned from W₀, all else stays

Access:      weights and gradients; data: 2 % (paper) or 5 % clean labelled;
             stage: post_training
Space:       weights
BN:          train-BN, also under parameters that stay (as in the reference)
Guarantees:  - fst: the norm of W is that of W₀ after every step
             - without weight and projection, fst is ft_init
             - fe_tuning leaves the fresh classifier bit-identical, lp all
               other parameters; running statistics move in all modes
Divergences: - The reference projects W in all modes, a frozen one too; here
               only fst does.
             - The short last batch of an epoch wraps round (see FT).
Cost:        one forward/backward pass per step; memory of plain training

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.fst(classifier, defenses.FstHParams(mode='lp'))
  >>> defense.phases[0].num_epochs
  10

References:
  Min et al., Towards Stable Backdoor Purification through Feature Shift
  Tuning, NeurIPS 2023.
  AISafety-HKUST/stable_backdoor_purification: fine_tune/ft.py
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import checks, keys, surgery, training, tree, types

# Which parts each mode tunes.
_TUNED = {
  'fst': ('head', 'body'),
  'ft_init': ('head', 'body'),
  'fe_tuning': ('body',),
  'lp': ('head',),
}
MODES = tuple(_TUNED)


@types.hparams
class FstHParams(training.RecipeHParams):
  """Hyper-parameters of FST; the defaults are the paper's for CIFAR-10.

  Those of `training.RecipeHParams`, epochs being passes over the clean set, of
  which the short last batch wraps round.

  Attributes:
    mode: 'fst' or a baseline: 'ft_init' | 'fe_tuning' | 'lp'.
    alpha: weight of ⟨W, W₀⟩; smaller for many classes.
    project: whether fst keeps the norm of W.
  """

  epochs: int = 10
  weight_decay: float = 0.0
  mode: str = 'fst'
  alpha: float = 0.2
  project: bool = True


class FstState(NamedTuple):
  """What is not trained by the phase.

  Attributes:
    batch_stats: running statistics.
    original: W₀, [d, n].
    frozen: the parts that stay, a dict of 'head' and 'body' or of neither.
    extra: of the `Carry`, handed on.
  """

  batch_stats: types.PyTree
  original: jax.Array
  frozen: dict[str, Any]
  extra: types.PyTree


def fst(
  classifier: types.Classifier, hp: FstHParams | None = None
) -> types.Defense:
  """Makes the defense, or a baseline of it.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of one phase, 'tune', that reads 'clean'. Its metrics: `loss`,
    `accuracy` and the `cosine` of W and W₀.

  Raises:
    ValueError: for a non-positive count, a negative weight, an unknown mode or
      schedule.
  """
  hp = hp or FstHParams()
  checks.positive(epochs=hp.epochs, batch_size=hp.batch_size)
  checks.one_of(MODES, mode=hp.mode)
  checks.non_negative(alpha=hp.alpha)

  def start(key, carry):
    head, body = surgery.split_head(classifier, carry.model.params)
    original = surgery.head_kernel(head)
    if hp.mode != 'lp':
      head = surgery.random_head(keys.stream(key, 'head'), head)
    parts = {'head': head, 'body': body}
    tuned = {name: parts.pop(name) for name in _TUNED[hp.mode]}
    return tuned, FstState(
      carry.model.batch_stats, original, parts, carry.extra
    )

  def model_of(tuned, rest):
    params = surgery.join_head(classifier, **{**rest.frozen, **tuned})
    return types.ModelState(params=params, batch_stats=rest.batch_stats)

  def objective(tuned, rest, batch, clock):
    del clock
    logits, new = classifier.apply(
      model_of(tuned, rest), batch['image'], train=True
    )
    loss = training.cross_entropy(logits, batch['label'])
    kernel = surgery.head_kernel({**rest.frozen, **tuned}['head'])
    if hp.mode == 'fst':
      loss += hp.alpha * jnp.sum(kernel * rest.original)
    metrics = {
      'accuracy': training.accuracy(logits, batch['label']),
      'cosine': tree.cosine(kernel, rest.original),
    }
    return loss, (metrics, rest._replace(batch_stats=new.batch_stats))

  def project(tuned, rest):
    kernel = surgery.head_kernel(tuned['head'])
    factor = tree.norm(rest.original) / tree.norm(kernel)
    return {**tuned, 'head': surgery.scale_kernel(tuned['head'], factor)}

  phase = training.fit(
    start,
    objective,
    training.optimizer(hp),
    finish=lambda tuned, rest: types.Carry(
      model=model_of(tuned, rest), extra=rest.extra
    ),
    constrain=project if hp.mode == 'fst' and hp.project else None,
    name='tune',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='clean',
    augment=True,
    drop_last=False,
  )
  return types.Defense(phases=(phase,), info='fst')
