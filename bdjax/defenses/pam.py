"""PAM: unlearns an inverted trigger as seen from the path to the backdoor.

With θ_bd the attacked weights, which stay, G a U-Net that moves features that
are not benign (objectives: `training.inversion`) and x̃ a batch x with a fifth
of its images replaced by G(x), under their true labels y:

  min over θ of CE(f_{θ + e}(x̃), y)
  e = ρ·(θ_bd − θ) / (‖θ_bd − θ‖₂ + 1e-12), a constant of each step

so that the weights themselves end ρ further off the backdoor than where the
loss is low.

1. 'pretrain': teach the generator to be an identity.
2. 'mask1': on a scratch copy, find the features that tell the classes.
3. 'attack1': let the generator move the others, within bounds.
4. 'target1': let generated images vote on the attacker's class t̂.
5. 'unlearn1': tune θ on mixed batches by SGD, with the gradient at θ + e.
6. Repeat 2, 3 and 5; the generator now also leads to t̂.
7. 'recalibrate', where asked for: re-estimate running statistics at θ.

Access:      weights and gradients; data: 5 % clean labelled; stage:
             post_training
Space:       weights (e, with one norm over all trainable tensors; unlearning);
             pixels through a U-Net (the trigger)
BN:          frozen-BN in pretrain and target; train-BN on the scratch copy of
             mask, on which attack runs frozen-BN; unlearn train-BN at θ + e,
             whose activations move the running statistics; recalibrate
             train-BN at θ
Guarantees:  - only unlearning changes the weights
             - displacement has length ρ and leaves statistics
             - gradient is taken at θ + e and the step at θ
             - attacked weights stay for all rounds
             - one optimizer over all rounds
             - labels stay true, and ⌊share·b⌋ + 1 images are replaced
Divergences: - Generated images are not clipped to [0, 1], as in the reference.
             - Near the attacked model θ + e lies behind it, as in the
               reference; `cap_at_backdoor` shortens e to the distance.
             - Running statistics fit θ + e, as in the reference; `recalibrate`
               makes them fit θ.
             - The reference's adaptive scaling of e, off by default, is left
               out: its two copies disagree on what it scales.
             - Bounds and MSEs of images are in normalized units, as its loaders
               normalize.
             - The generator starts afresh for every model, the mask for every
               round; the optimizers go on from round to round.
             - U-Nets are shallower on images below 32×32 (see `models.unet`).
             - The short last batch of an epoch wraps round (see FT).
Cost:        per step two forward passes and one backward, and the U-Net's
             (pretrain, attack); one forward (mask, target); one of each and a
             fifth of the U-Net's forward (unlearn), no more than plain SGD;
             memory of three models and the U-Net (7.8 million weights at width
             32) with its moments

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> hp = defenses.PamHParams(rounds=1)
  >>> [phase.name for phase in defenses.pam(classifier, hp).phases]
  ['pretrain', 'mask1', 'attack1', 'target1', 'unlearn1']

References:
  Min et al., Uncovering, Explaining, and Mitigating the Superficial Safety of
  Backdoor Defense, NeurIPS 2024.
  AISafety-HKUST/Backdoor_Safety_Tuning: fine_tune/BTIDBF/{sam,btidbfu}.py
"""

from bdjax import checks, optim, training, tree, types


@types.hparams
class PamHParams(training.GeneratorHParams):
  """Hyper-parameters of PAM; the defaults are its for CIFAR-10.

  Those of `training.GeneratorHParams` for the inversion.

  Attributes:
    rounds: of inversion and unlearning.
    unlearn_epochs: passes of unlearning over the clean set, per round.
    lr: SGD's learning rate in unlearning.
    momentum: its momentum; there is no decay.
    rho: length of the displacement towards the attacked weights.
    cap_at_backdoor: whether it is at most the distance to them.
    recalibrate: whether running statistics are re-estimated at the end.
  """

  rounds: int = 3
  unlearn_epochs: int = 30
  lr: float = 0.01
  momentum: float = 0.1
  rho: float = 0.5
  cap_at_backdoor: bool = False
  recalibrate: bool = False


def pam(
  classifier: types.Classifier, hp: PamHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network; it has the tap 'penultimate_map'.
    hp: hyper-parameters.

  Returns:
    A defense of 2 + 3·rounds phases that read 'clean', and one more where it
    recalibrates. Its extra holds the last 'generator' and 'mask', and the
    'target' that the first round found.

  Raises:
    Unsupported: if the network has no tap 'penultimate_map'.
    ValueError: for a non-positive count, a negative rate, length or bound, a
      share outside (0, 1] or a U-Net that cannot halve the images so often.
  """
  hp = hp or PamHParams()
  checks.positive(rounds=hp.rounds, unlearn_epochs=hp.unlearn_epochs)
  checks.non_negative(lr=hp.lr, momentum=hp.momentum, rho=hp.rho)
  phases = training.alternate(
    classifier, hp, lambda number: _unlearn(classifier, hp, number), hp.rounds
  )
  if hp.recalibrate:
    last = training.recalibration(
      classifier, name='recalibrate', batch_size=hp.batch_size, reads='clean'
    )
    phases = (*phases, last)
  return types.Defense(phases=phases, info='pam')


def _unlearn(
  classifier: types.Classifier, hp: PamHParams, number: int
) -> types.Phase:
  """The phase of one round that changes the model."""
  net = training.generator(classifier, hp)

  def objective(model, extra, batch):
    attacked = extra['attacked']
    e = optim.displacement(
      model.params, attacked, hp.rho, is_capped=hp.cap_at_backdoor
    )
    # e is a constant, so the gradient by θ is that at θ + e.
    moved = types.ModelState(
      params=tree.add(model.params, e), batch_stats=model.batch_stats
    )
    seen = training.see(classifier, moved, batch['mixed'], train=True)
    metrics = {
      'accuracy': training.accuracy(seen.logits, batch['label']),
      'distance': tree.norm(tree.subtract(attacked, model.params)),
    }
    loss = training.cross_entropy(seen.logits, batch['label'])
    return loss, (metrics, seen.model)

  phase = training.tune_mixed(
    lambda extra, images, key, index: net.apply(extra['generator'], images),
    objective,
    optim.sgd(optim.constant(hp.lr), momentum=hp.momentum, weight_decay=0.0),
    share=hp.share,
    name=f'unlearn{number}',
    num_epochs=hp.unlearn_epochs,
    batch_size=hp.batch_size,
  )
  return _from_attacked(phase) if number == 1 else phase


def _from_attacked(phase: types.Phase) -> types.Phase:
  """The phase, which remembers the weights it started from as the attacked."""

  def init(key, carry):
    carry = training.with_extra(carry, attacked=carry.model.params)
    return phase.init(key, carry)

  return phase._replace(init=init)
