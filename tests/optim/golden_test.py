"""Two steps of SGD and of (A)SAM on a real network, against torch's numbers.

The fixtures hold float64 runs of public PyTorch code from the same weights on
the same 32 images. Errors are relative to the largest entry of each array;
tolerances are about ten times what that code loses when run in float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from bdjax import optim, tree, types
from bdjax.training import losses
from tests.reference import golden, torch_layout

_LR, _RHO, _SMOOTHING = 0.01, 2.0, 0.1
_LOSS, _GRAD, _NORM, _EPS, _DELTA = 1e-6, 3e-5, 2e-4, 5e-5, 1e-3


@functools.cache
def _value_and_grad():
  """(params, statistics, smoothing) -> loss and gradient, in train-BN."""
  images = golden.images('sgd_step', dtype=jnp.float32)
  labels = jnp.int32(golden.arrays('sgd_step')['labels'])

  def loss_fn(params, batch_stats, smoothing):
    state = types.ModelState(params=params, batch_stats=batch_stats)
    logits, state = golden.network().apply(state, images, train=True)
    loss = losses.smoothed_kl(logits, labels, smoothing)
    return loss, state.batch_stats

  return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def _clock(step):
  return types.Clock(jax.random.key(0), step, 0, 2, 1)


def _norms(params):
  """Norms of all tensors in torch's order."""
  named = torch_layout.to_torch(params)
  names = golden.arrays('sgd_step')['param_names']
  return np.array([np.linalg.norm(named[str(n)]) for n in names])


def _sgd():
  return optim.sgd(optim.constant(_LR), momentum=0.9, weight_decay=5e-4)


@functools.cache
def _sgd_run():
  """Per step: loss, gradient; then weights and statistics after it."""
  state = golden.state()
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
  state = golden.state()
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

  def assert_selected(self, got, fixture, prefix, tolerance):
    """All tensors the fixture holds under the prefix, by torch name."""
    want = golden.arrays(fixture, f'{prefix}/')
    self.assertNotEmpty(want)
    for name, value in want.items():
      with self.subTest(name):
        golden.assert_close(got[name], value, tolerance)

  @parameterized.parameters(1, 2)
  def test_sgd_step(self, k):
    want, (start, log) = golden.arrays('sgd_step'), _sgd_run()
    now = log[k - 1]
    delta = tree.subtract(now['params'], start.params)
    golden.assert_close(now['loss'], want[f'loss_step{k}'], _LOSS)
    golden.assert_close(_norms(now['grad']), want[f'grad_l2_step{k}'], _GRAD)
    golden.assert_close(_norms(now['params']), want[f'param_l2_after{k}'], 1e-6)
    self.assert_selected(
      torch_layout.to_torch(delta), 'sgd_step', f'delta_step{k}', _DELTA
    )

  def test_sgd_gradient_of_the_first_step(self):
    _, log = _sgd_run()
    self.assert_selected(
      torch_layout.to_torch(log[0]['grad']), 'sgd_step', 'grad_step1', _GRAD
    )

  def test_sgd_statistics_and_loss_after_two_steps(self):
    want, (_, log) = golden.arrays('sgd_step'), _sgd_run()
    self.assert_selected(
      torch_layout.to_torch(log[1]['stats']), 'sgd_step', 'bn_after2', 1e-5
    )
    golden.assert_close(log[2]['loss'], want['loss_step3'], _LOSS)

  @pytest.mark.slow
  def test_ft_sam_perturbation(self):
    want, (_, log) = golden.arrays('ft_sam_step'), _sam_run(True)
    now = log[0]
    eps = tree.subtract(now['near'], now['before'])
    # The difference of the weights is rounded to theirs; this one is not.
    tx = optim.asam_perturbation(_RHO)
    update, _ = tx.update(now['grad'], tx.init(None), now['before'])
    exact = tree.scale(-1.0, update)
    ratio = jax.tree.map(jnp.divide, exact, now['before'])
    scaled = jax.tree.map(jnp.multiply, now['grad'], now['before'])
    golden.assert_close(_norms(eps), want['eps_l2'], _NORM)
    golden.assert_close(_norms(exact), want['eps_l2'], _NORM)
    golden.assert_close(tree.norm(exact), want['eps_norm'], _NORM)
    golden.assert_close(tree.norm(ratio), want['eps_over_absw_norm'], _NORM)
    golden.assert_close(tree.norm(scaled), want['norm_w_times_g'], _NORM)
    golden.assert_close(tree.norm(now['grad']), want['norm_g'], _NORM)
    self.assert_selected(
      torch_layout.to_torch(exact), 'ft_sam_step', 'eps', _EPS
    )

  def test_ft_sam_step(self):
    want, (start, log) = golden.arrays('ft_sam_step'), _sam_run(True)
    now = log[0]
    delta = tree.subtract(now['params'], start.params)
    golden.assert_close(now['loss'], want['loss_at_w'], _LOSS)
    golden.assert_close(now['near_loss'], want['loss_at_perturbed'], _GRAD)
    golden.assert_close(_norms(now['grad']), want['grad_l2_at_w'], _GRAD)
    golden.assert_close(
      _norms(now['near_grad']), want['grad_l2_at_perturbed'], _NORM
    )
    self.assert_selected(
      torch_layout.to_torch(delta), 'ft_sam_step', 'delta', _DELTA
    )
    golden.assert_close(_norms(now['params']), want['param_l2_after'], 1e-6)

  def test_ft_sam_statistics_come_from_the_first_pass(self):
    _, log = _sam_run(True)
    self.assert_selected(
      torch_layout.to_torch(log[0]['stats']), 'ft_sam_step', 'bn_after', 1e-5
    )

  def test_ft_sam_second_step(self):
    want, (_, log) = golden.arrays('ft_sam_step'), _sam_run(True)
    now = log[1]
    golden.assert_close(now['loss'], want['second_step_loss_at_w'], _GRAD)
    golden.assert_close(
      now['near_loss'], want['second_step_loss_at_perturbed'], _GRAD
    )
    golden.assert_close(_norms(now['params']), want['param_l2_after2'], 1e-6)

  def test_plain_sam(self):
    """A radius of 2 without |w| throws the weights far from where they work.

    There float32 loses much more (in float64 this agrees to 1e-8), hence the
    larger tolerances from the second pass on.
    """
    want, (_, log) = golden.arrays('ft_sam_step', 'plain/'), _sam_run(False)
    first, second = log
    eps = tree.subtract(first['near'], first['before'])
    golden.assert_close(tree.norm(eps), want['eps_norm'], _EPS)
    golden.assert_close(_norms(eps), want['eps_l2'], _EPS)
    golden.assert_close(first['near_loss'], want['loss_at_perturbed'], _GRAD)
    golden.assert_close(
      _norms(first['near_grad']), want['grad_l2_at_perturbed'], 2e-3
    )
    golden.assert_close(_norms(first['params']), want['param_l2_after'], 1e-5)
    golden.assert_close(second['loss'], want['second_step_loss_at_w'], 2e-4)
    golden.assert_close(
      second['near_loss'], want['second_step_loss_at_perturbed'], 2e-2
    )
    golden.assert_close(_norms(second['params']), want['param_l2_after2'], 2e-4)
