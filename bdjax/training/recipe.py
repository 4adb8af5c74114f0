"""The standard training recipe: SGD with coupled decay and a schedule."""

import optax

from bdjax import checks, optim, types

SCHEDULES = ('constant', 'cosine_epoch', 'cyclic_iter', 'step_epoch')


@types.hparams
class RecipeHParams:
  """How a network is trained from scratch.

  The defaults are BackdoorBench's for CIFAR-10.

  Attributes:
    epochs: passes over the training set.
    batch_size: images per step; an epoch's short last batch is dropped.
    lr: learning rate at the start.
    momentum: heavy-ball momentum.
    weight_decay: added to the gradient before momentum, on all parameters.
    schedule: 'constant' | 'cosine_epoch' | 'cyclic_iter' | 'step_epoch' (see
      `schedule`).
    t_max: half period of the cosine in epochs (cosine_epoch) or steps
      (cyclic_iter), or epochs between drops (step_epoch); None = all epochs,
      100 steps and 100 epochs.
  """

  epochs: int = 100
  batch_size: int = 128
  lr: float = 0.01
  momentum: float = 0.9
  weight_decay: float = 5e-4
  schedule: str = 'cosine_epoch'
  t_max: int | None = None


def schedule(name: str, lr, t_max: int | None) -> optim.Schedule:
  """A schedule by name.

  Args:
    name: 'constant'; 'cosine_epoch', one cosine from lr to 0, constant within
      an epoch; 'cyclic_iter', a periodic cosine per step; 'step_epoch', a
      tenth of it after every `t_max` epochs.
    lr: learning rate at the start, may be traced.
    t_max: half period, see `RecipeHParams`.

  Returns:
    The schedule.

  Raises:
    ValueError: for an unknown name, a negative rate or a non-positive t_max.
  """
  checks.one_of(SCHEDULES, schedule=name)
  checks.non_negative(lr=lr)
  checks.positive(t_max=t_max)
  if name == 'constant':
    return optim.constant(lr)
  if name == 'cosine_epoch':
    return optim.cosine_epochs(lr, t_max)
  if name == 'cyclic_iter':
    return optim.cosine_steps(lr, t_max or 100)
  return _drops(lr, t_max or 100)


def _drops(lr, every: int) -> optim.Schedule:
  """A tenth of the rate after every so many epochs of the phase."""

  def drop(clock: types.Clock):
    boundaries = range(every, clock.num_epochs, every)
    return optim.step_epochs(lr, boundaries)(clock)

  return drop


def optimizer(hp) -> optax.GradientTransformationExtraArgs:
  """The optimizer of a recipe.

  Args:
    hp: anything with the fields lr, momentum, weight_decay, schedule, t_max.

  Returns:
    SGD whose `update` takes the keyword argument `clock`.
  """
  return optim.sgd(
    schedule(hp.schedule, hp.lr, hp.t_max),
    momentum=hp.momentum,
    weight_decay=hp.weight_decay,
  )
