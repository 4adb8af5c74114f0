"""FT-SAM: fine-tunes with (adaptive) sharpness-aware minimization.

Objective: min_w max_{‖ε ⊘ |w|‖₂ ≤ ρ} L(w + ε) with L the label-smoothed loss
on clean images and one global norm over all trainable scalars. First-order
solution: ε = ρ · w² ⊙ g / ‖|w| ⊙ g‖₂, g = ∇L(w). Weights of large norm, where
backdoors live, see the largest perturbation.

1. Gradient g at w on an augmented batch; running statistics move here.
2. ε from g, without weight decay.
3. Gradient at w + ε on the same pixels; its statistics are dropped.
4. SGD with momentum from w, weight decay taken at w.

Access:      weights and gradients; data: 5 % clean labelled, class-balanced;
             stage: post_training
Space:       weights
BN:          train-BN at w; batch-BN/no-update at w + ε
Guarantees:  - rho zero without smoothing is plain fine-tuning
             - running statistics move once per step
Divergences: - The reference steps its cosine per iteration, and PyTorch's is
               periodic, so that it ends at the largest learning rate; that is
               `schedule='cyclic_iter'`. The default is one decay to zero.
             - The short last batch of an epoch wraps round (see FT).
Cost:        two forward/backward passes per step; memory of plain training
             plus one copy of the parameters

Example:
  >>> from bdjax import data, defenses, models
  >>> classifier = models.make('tiny', data.spec('synthetic'))
  >>> defense = defenses.ft_sam(classifier, defenses.FtSamHParams(rho=8.0))
  >>> defense.phases[0].name
  'tune'

References:
  Zhu et al., Enhancing Fine-Tuning Based Backdoor Defense with
  Sharpness-Aware Minimization, ICCV 2023.
  SCLBD/BackdoorBench: defense/ft-sam.py
"""

from bdjax import checks, optim, training, types


@types.hparams
class FtSamHParams(training.RecipeHParams):
  """Hyper-parameters of FT-SAM; the defaults are the paper's for CIFAR-10.

  Those of `training.RecipeHParams`, epochs being passes over the clean set,
  of which the short last batch wraps round, and weight decay taken at w.

  Attributes:
    rho: radius of the perturbation: of ‖ε ⊘ |w|‖₂ if `adaptive`, else ‖ε‖₂.
    adaptive: whether the perturbation scales with w², as published.
    label_smoothing: mass taken from the label, spread over other classes.
  """

  batch_size: int = 256
  rho: float = 2.0
  adaptive: bool = True
  label_smoothing: float = 0.1


def ft_sam(
  classifier: types.Classifier, hp: FtSamHParams | None = None
) -> types.Defense:
  """Makes the defense.

  Args:
    classifier: the network.
    hp: hyper-parameters.

  Returns:
    A defense of one phase, 'tune', that reads 'clean'.

  Raises:
    ValueError: for a negative radius, a smoothing outside [0, 1], a
      non-positive count or an unknown schedule.
  """
  hp = hp or FtSamHParams()
  checks.positive(epochs=hp.epochs, batch_size=hp.batch_size)
  checks.non_negative(rho=hp.rho)
  checks.unit_interval(label_smoothing=hp.label_smoothing)
  loss = lambda logits, labels: training.smoothed_kl(
    logits, labels, hp.label_smoothing
  )
  phase = training.supervised(
    classifier,
    optim.sam(training.optimizer(hp), hp.rho, adaptive=hp.adaptive),
    loss=loss,
    name='tune',
    num_epochs=hp.epochs,
    batch_size=hp.batch_size,
    reads='clean',
    augment=True,
    drop_last=False,
    grad_passes=2,
  )
  return types.Defense(phases=(phase,), info='ft_sam')
