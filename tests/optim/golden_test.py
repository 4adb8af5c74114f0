"""Two steps of SGD and of (A)SAM on a real network, against torch's numbers.

The fixtures hold float64 runs of public PyTorch code from the same weights on
the same 32 images. Errors are relative to the largest entry of each array;
tolerances are about ten times what that code loses when run in float32.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import models, optim, tree, types
from bdjax.training import losses
from tests.reference import torch_layout

_REFERENCE = pathlib.Path(__file__).parents[1] / 'reference'
_LR, _RHO, _SMOOTHING = 0.01, 2.0, 0.1
_LOSS, _GRAD, _NORM, _EPS, _DELTA = 1e-6, 3e-5, 2e-4, 5e-5, 1e-3


@functools.cache
def _fixture(name):
  with np.load(_REFERENCE / f'{name}.npz') as arrays:
    return dict(arrays)


@functools.cache
def _classifier():
  spec = types.DataSpec(
    name='cifar10',
    image_shape=(32, 32, 3),
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.247, 0.243, 0.261),
  )
  return models.make('preactresnet18', spec, width=8)


def _start():
  return torch_layout.load_state(
    _REFERENCE / 'preact_w8_state.npz', _classifier()
  )


@functools.cache
def _value_and_grad():
  """(params, statistics, smoothing) -> loss and gradient, in train-BN."""
  images = jnp.float32(_fixture('sgd_step')['images_u8']) / 255
  labels = jnp.int32(_fixture('sgd_step')['labels'])

  def loss_fn(params, batch_stats, smoothing):
    state = types.ModelState(params=params, batch_stats=batch_stats)
    logits, state = _classifier().apply(state, images, train=True)
    loss = losses.smoothed_kl(logits, labels, smoothing)
    return loss, state.batch_stats

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def _clock(step):
  return types.Clock(jax.random.key(0), step, 0, 2, 1)


def _norms(params):
  """Norms of all tensors in torch's order."""
  named = torch_layout.to_torch(params)
  names = _fixture('sgd_step')['param_names']
  return np.array([np.linalg.norm(named[str(n)]) for n in names])


def _sgd():
  return optim.sgd(optim.constant(_LR), momentum=0.9, weight_decay=5e-4)


@functools.cache
def _sgd_run():
  """Per step: loss, gradient; then weights and statistics after it."""
  state = _start()
  params, stats = state.params, state.batch_stats
  tx = _sgd()
  opt_state, log = tx.init(params), []
  for k in range(3):
    (loss, stats_after), grad = _value_and_grad()(params, stats, 0.0)
    updates, opt_state = tx.update(grad, opt_state, params, clock=_clock(k))
    params, stats = optax.apply_updates(params, updates), stats_after
    log.append(dict(loss=loss, grad=grad, params=params, stats=stats))
  return state, log


@functools.cache
def _sam_run(adaptive):
  """Per step: losses, gradients and ε; then weights and statistics."""
  state = _start()
  params, stats = state.params, state.batch_stats
  tx = optim.sam(_sgd(), _RHO, adaptive=adaptive)
  opt_state, log = tx.init(params), []
  for k in range(2):
    seen = {}

    def grad_fn(near, _, stats=stats, seen=seen):
      # The second pass normalizes by the batch; its statistics are dropped.
      (loss, _), grad = _value_and_grad()(near, stats, _SMOOTHING)
      seen.update(near=near, near_loss=loss, near_grad=grad)
      return grad

    (loss, stats), grad = _value_and_grad()(params, stats, _SMOOTHING)
    updates, opt_state = tx.update(
      grad, opt_state, params, grad_fn=grad_fn, clock=_clock(k)
    )
    seen |= dict(loss=loss, grad=grad, before=params, stats=stats)
    params = optax.apply_updates(params, updates)
    log.append(seen | dict(params=params))
  return state, log


class GoldenTest(parameterized.TestCase):
  """Compares with the fixtures entry by entry."""

  def setUp(self):
    super().setUp()
    self.enter_context(jax.default_matmul_precision('highest'))

  def assert_golden(self, got, golden, tolerance):
    golden = np.asarray(golden, np.float64)
    error = np.max(np.abs(np.asarray(got, np.float64) - golden))
    self.assertLessEqual(error, tolerance * np.max(np.abs(golden)))

  def assert_selected(self, got, fixture, prefix, tolerance):
    """All tensors the fixture holds under the prefix, by torch name."""
    names = [k for k in fixture if k.startswith(prefix + '/')]
    self.assertNotEmpty(names)
    for name in names:
      with self.subTest(name):
        tensor = got[name.removeprefix(prefix + '/')]
        self.assert_golden(tensor, fixture[name], tolerance)

  @parameterized.parameters(1, 2)
  def test_sgd_step(self, k):
    golden, (start, log) = _fixture('sgd_step'), _sgd_run()
    now = log[k - 1]
    delta = tree.subtract(now['params'], start.params)
    self.assert_golden(now['loss'], golden[f'loss_step{k}'], _LOSS)
    self.assert_golden(_norms(now['grad']), golden[f'grad_l2_step{k}'], _GRAD)
    self.assert_golden(
      _norms(now['params']), golden[f'param_l2_after{k}'], 1e-6
    )
    self.assert_selected(
      torch_layout.to_torch(delta), golden, f'delta_step{k}', _DELTA
    )

  def test_sgd_gradient_of_the_first_step(self):
    golden, (_, log) = _fixture('sgd_step'), _sgd_run()
    self.assert_selected(
      torch_layout.to_torch(log[0]['grad']), golden, 'grad_step1', _GRAD
    )

  def test_sgd_statistics_and_loss_after_two_steps(self):
    golden, (_, log) = _fixture('sgd_step'), _sgd_run()
    self.assert_selected(
      torch_layout.to_torch(log[1]['stats']), golden, 'bn_after2', 1e-5
    )
    self.assert_golden(log[2]['loss'], golden['loss_step3'], _LOSS)

  def test_ft_sam_perturbation(self):
    golden, (_, log) = _fixture('ft_sam_step'), _sam_run(True)
    now = log[0]
    eps = tree.subtract(now['near'], now['before'])
    # The difference of the weights is rounded to theirs; this one is not.
    tx = optim.asam_perturbation(_RHO)
    update, _ = tx.update(now['grad'], tx.init(None), now['before'])
    exact = tree.scale(-1.0, update)
    ratio = jax.tree.map(jnp.divide, exact, now['before'])
    scaled = jax.tree.map(jnp.multiply, now['grad'], now['before'])
    self.assert_golden(_norms(eps), golden['eps_l2'], _NORM)
    self.assert_golden(_norms(exact), golden['eps_l2'], _NORM)
    self.assert_golden(tree.norm(exact), golden['eps_norm'], _NORM)
    self.assert_golden(tree.norm(ratio), golden['eps_over_absw_norm'], _NORM)
    self.assert_golden(tree.norm(scaled), golden['norm_w_times_g'], _NORM)
    self.assert_golden(tree.norm(now['grad']), golden['norm_g'], _NORM)
    self.assert_selected(torch_layout.to_torch(exact), golden, 'eps', _EPS)

  def test_ft_sam_step(self):
    golden, (start, log) = _fixture('ft_sam_step'), _sam_run(True)
    now = log[0]
    delta = tree.subtract(now['params'], start.params)
    self.assert_golden(now['loss'], golden['loss_at_w'], _LOSS)
    self.assert_golden(now['near_loss'], golden['loss_at_perturbed'], _GRAD)
    self.assert_golden(_norms(now['grad']), golden['grad_l2_at_w'], _GRAD)
    self.assert_golden(
      _norms(now['near_grad']), golden['grad_l2_at_perturbed'], _NORM
    )
    self.assert_selected(torch_layout.to_torch(delta), golden, 'delta', _DELTA)
    self.assert_golden(_norms(now['params']), golden['param_l2_after'], 1e-6)

  def test_ft_sam_statistics_come_from_the_first_pass(self):
    golden, (_, log) = _fixture('ft_sam_step'), _sam_run(True)
    self.assert_selected(
      torch_layout.to_torch(log[0]['stats']), golden, 'bn_after', 1e-5
    )

  def test_ft_sam_second_step(self):
    golden, (_, log) = _fixture('ft_sam_step'), _sam_run(True)
    now = log[1]
    self.assert_golden(now['loss'], golden['second_step_loss_at_w'], _GRAD)
    self.assert_golden(
      now['near_loss'], golden['second_step_loss_at_perturbed'], _GRAD
    )
    self.assert_golden(_norms(now['params']), golden['param_l2_after2'], 1e-6)

  def test_plain_sam(self):
    """A radius of 2 without |w| throws the weights far from where they work.

    There float32 loses much more (in float64 this agrees to 1e-8), hence the
    larger tolerances from the second pass on.
    """
    fixture, (_, log) = _fixture('ft_sam_step'), _sam_run(False)
    golden = {
      k.removeprefix('plain/'): v
      for k, v in fixture.items()
      if k.startswith('plain/')
    }
    first, second = log
    eps = tree.subtract(first['near'], first['before'])
    self.assert_golden(tree.norm(eps), golden['eps_norm'], _EPS)
    self.assert_golden(_norms(eps), golden['eps_l2'], _EPS)
    self.assert_golden(first['near_loss'], golden['loss_at_perturbed'], _GRAD)
    self.assert_golden(
      _norms(first['near_grad']), golden['grad_l2_at_perturbed'], 2e-3
    )
    self.assert_golden(_norms(first['params']), golden['param_l2_after'], 1e-5)
    self.assert_golden(second['loss'], golden['second_step_loss_at_w'], 2e-4)
    self.assert_golden(
      second['near_loss'], golden['second_step_loss_at_perturbed'], 2e-2
    )
    self.assert_golden(
      _norms(second['params']), golden['param_l2_after2'], 2e-4
    )
