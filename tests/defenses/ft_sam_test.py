"""FT-SAM: its guarantees, its step by hand, its messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import parameterized

from bdjax import data, defenses, training, types
from tests import toy
from tests.defenses import tuning

RECIPE = dict(epochs=3, batch_size=4, lr=0.05)
AUGMENT = data.augment_fn(toy.dataset().spec)


def hparams(**values):
  base = dict(epochs=3, batch_size=tuning.NUM, schedule='constant', lr=0.05)
  return defenses.FtSamHParams(**base | values)


@functools.cache
def fine_tuned():
  """Plain FT with the same key, batches and augmentation."""
  defense = defenses.ft(tuning.NET, defenses.FtHParams(**RECIPE))
  model = tuning.NET.init(tuning.KEY)
  return tuning.tune(defense, model, augment=AUGMENT)


def ft_sam_twin(a, w, *, rho, adaptive, steps, lr, momentum, decay):
  """FT-SAM on ½ Σ aᵢ wᵢ² in NumPy."""
  v = np.zeros_like(w)
  for _ in range(steps):
    g = a * w
    if adaptive:
      eps = rho * w**2 * g / np.linalg.norm(np.abs(w) * g)
    else:
      eps = rho * g / np.linalg.norm(g)
    v = momentum * v + a * (w + eps) + decay * w
    w = w - lr * v
  return w


class FtSamTest(parameterized.TestCase):
  @parameterized.product(adaptive=(True, False))
  def test_rho_zero_without_smoothing_is_plain_fine_tuning(self, adaptive):
    hp = defenses.FtSamHParams(
      rho=0.0, label_smoothing=0.0, adaptive=adaptive, **RECIPE
    )
    got = tuning.tune(
      defenses.ft_sam(tuning.NET, hp),
      tuning.NET.init(tuning.KEY),
      augment=AUGMENT,
    )
    chex.assert_trees_all_equal(got, fine_tuned())

  def test_running_statistics_move_once_per_step(self):
    model = tuning.NET.init(tuning.KEY)
    hp = hparams(lr=0.0, epochs=3, rho=2.0)
    after = tuning.tune(defenses.ft_sam(tuning.NET, hp), model)
    chex.assert_trees_all_equal(after.params, model.params)
    mean, var = tuning.decayed(model, steps=3)
    got = after.batch_stats['bn0']
    np.testing.assert_allclose(got['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['var'], var, rtol=1e-4)

  @parameterized.product(
    adaptive=(True, False), decay=(0.0, 0.3), momentum=(0.0, 0.9)
  )
  def test_steps_on_a_quadratic(self, adaptive, decay, momentum):
    # The decay is large enough to tell w from w + ε.
    a, w = np.asarray([1.0, 2.0, 0.5]), np.asarray([0.6, -0.5, 0.8])
    hp = hparams(
      lr=0.1,
      momentum=momentum,
      weight_decay=decay,
      rho=0.7,
      adaptive=adaptive,
      label_smoothing=0.0,
    )
    defense = defenses.ft_sam(tuning.quadratic(a), hp)
    after = tuning.tune(defense, tuning.weights(*w), num=1)
    want = ft_sam_twin(
      a,
      w,
      rho=0.7,
      adaptive=adaptive,
      steps=3,
      lr=0.1,
      momentum=momentum,
      decay=decay,
    )
    np.testing.assert_allclose(after.params['w'], want, rtol=1e-5)

  def test_zero_weights_are_not_perturbed(self):
    a, w = np.asarray([1.0, 2.0]), np.asarray([0.6, 0.0])
    hp = hparams(
      lr=0.1, momentum=0.0, weight_decay=0.0, rho=0.7, label_smoothing=0.0
    )
    defense = defenses.ft_sam(tuning.quadratic(a), hp)
    after = tuning.tune(defense, tuning.weights(*w), num=1)
    self.assertEqual(float(after.params['w'][1]), 0.0)
    self.assertTrue(bool(jnp.all(jnp.isfinite(after.params['w']))))

  def test_equals_two_calls_written_out(self):
    net, model = tuning.NET, tuning.NET.init(tuning.KEY)
    hp = hparams(rho=2.0, label_smoothing=0.1, epochs=1, momentum=0.0)
    got = tuning.tune(defenses.ft_sam(net, hp), model)
    images = jnp.asarray(tuning.IMAGES, jnp.float32) / 255
    target = np.full((tuning.NUM, 4), 0.1 / 3, np.float32)
    target[np.arange(tuning.NUM), tuning.LABELS] = 0.9

    def loss_fn(params):
      here = types.ModelState(params=params, batch_stats=model.batch_stats)
      logits, new = net.apply(here, images, train=True)
      losses = optax.losses.softmax_cross_entropy(logits, jnp.asarray(target))
      return losses.mean(), new.batch_stats

    @jax.jit
    def step(w):
      g, stats = jax.grad(loss_fn, has_aux=True)(w)
      squares = sum(jnp.sum((x * y) ** 2) for x, y in _pairs(w, g))
      factor = 2.0 / jnp.sqrt(squares)
      near = jax.tree.map(lambda x, y: x + factor * x**2 * y, w, g)
      g = jax.grad(loss_fn, has_aux=True)(near)[0]
      return jax.tree.map(lambda x, y: x - 0.05 * (y + 5e-4 * x), w, g), stats

    params, stats = step(model.params)
    want = types.ModelState(params=params, batch_stats=stats)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)

  def test_steeper_radius_is_another_result(self):
    model = tuning.NET.init(tuning.KEY)
    run = jax.jit(
      lambda rho: tuning.tune(
        defenses.ft_sam(tuning.NET, hparams(epochs=1, rho=rho)), model
      )
    )
    same = jax.tree.map(np.array_equal, run(2.0).params, run(4.0).params)
    self.assertFalse(any(jax.tree.leaves(same)))

  def test_is_one_phase_on_the_clean_set_with_its_recipe(self):
    (phase,) = defenses.ft_sam(tuning.NET).phases
    self.assertEqual((phase.reads, phase.augment), ('clean', True))
    self.assertEqual((phase.num_epochs, phase.batch_size), (100, 256))
    self.assertFalse(phase.drop_last)

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(batch_size=0), '`batch_size=0` must be positive'),
    (dict(rho=-2.0), '`rho=-2.0` must not be negative'),
    (dict(label_smoothing=10.0), r'`label_smoothing=10.0` is not in \[0, 1\]'),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(schedule='cyclic'), "Did you mean 'cyclic_iter'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.ft_sam(tuning.NET, defenses.FtSamHParams(**values))

  def test_floats_are_leaves_and_counts_are_not(self):
    self.assertLen(jax.tree.leaves(defenses.FtSamHParams()), 5)


def _pairs(a, b):
  return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


class CyclicScheduleTest(parameterized.TestCase):
  def test_period_is_a_hundred_steps_down_and_up(self):
    hp = defenses.FtSamHParams(schedule='cyclic_iter')
    schedule = training.schedule(hp.schedule, hp.lr, hp.t_max)
    clock = lambda step: types.Clock(tuning.KEY, step, 0, 1000, 100)
    rates = [float(schedule(clock(k))) for k in (0, 50, 100, 200, 1000)]
    np.testing.assert_allclose(rates, [0.01, 0.005, 0.0, 0.01, 0.01], atol=1e-8)
