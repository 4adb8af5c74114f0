"""I-BAU: its guarantees, its two passes, torch's numbers, its messages."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import defenses, training
from bdjax.defenses.i_bau import _patched, losses, unlearning_gradient
from tests.defenses import tuning
from tests.reference import golden, torch_layout

X = jnp.asarray(tuning.IMAGES, jnp.float32) / 255
Y = jnp.asarray(tuning.LABELS, jnp.int32)
MODEL = tuning.NET.init(tuning.KEY)


def hparams(**values):
  base = dict(rounds=1, batch_size=tuning.NUM, lr=0.01, inner_lr=0.5)
  return defenses.IBauHParams(**base | values)


def run(hp, net=tuning.NET):
  return tuning.run(defenses.i_bau(net, hp), MODEL)


@functools.cache
def unlearned():
  return run(hparams(rounds=2))


@jax.jit
def gradient(hp, delta, batch, kept):
  return unlearning_gradient(tuning.NET, hp, MODEL, delta, batch, kept)[0]


class IBauTest(parameterized.TestCase):
  def test_running_statistics_are_bit_identical_and_weights_move(self):
    carry, _ = unlearned()
    chex.assert_trees_all_equal(carry.model.batch_stats, MODEL.batch_stats)
    same = jax.tree.map(np.array_equal, carry.model.params, MODEL.params)
    self.assertFalse(any(jax.tree.leaves(same)))

  def test_a_learning_rate_of_zero_leaves_the_weights_bit_identical(self):
    carry, metrics = run(hparams(lr=0.0, rounds=2))
    chex.assert_trees_all_equal(carry.model, MODEL)
    # The perturbation starts from zero in every round, and is then the same.
    norms = np.asarray(metrics['unlearn']['delta_norm'])
    np.testing.assert_allclose(norms, norms[0], rtol=1e-4)
    self.assertGreater(norms[0], 0)

  def test_first_pass_is_one_descent_step_per_batch(self):
    hp = hparams(lr=0.0, penalty=0.3)
    carry, _ = run(hp)
    labels = jnp.argmax(tuning.NET.apply(MODEL, X)[0], -1)

    def inner(delta):
      logits, _ = tuning.NET.apply(MODEL, X + 0.25 * delta[None])
      return 0.3 * jnp.sum(delta**2) - training.cross_entropy(logits, labels)

    want = -0.5 * 0.25 * jax.grad(inner)(jnp.zeros(X.shape[1:]))
    np.testing.assert_allclose(carry.extra['delta'], want, rtol=1e-3, atol=1e-7)

  def test_first_update_follows_the_sign_of_the_hypergradient(self):
    hp = hparams(patch_ratio=1.0)
    carry, _ = run(hp)
    delta = carry.extra['delta'] / 0.25
    kept = {'image': X, 'label': Y}
    batch = {**kept, 'is_patched': jnp.ones(tuning.NUM, bool)}
    grad = gradient(hp, delta, batch, kept)
    for g, new, old in zip(
      jax.tree.leaves(grad),
      jax.tree.leaves(carry.model.params),
      jax.tree.leaves(MODEL.params),
      strict=True,
    ):
      clear = np.abs(np.asarray(g)) > 1e-4
      want = -0.01 * np.sign(np.asarray(g))
      np.testing.assert_allclose(
        np.asarray(new - old)[clear], want[clear], rtol=1e-2
      )

  def test_second_order_term_matters(self):
    kept = {'image': X, 'label': Y}
    batch = {**kept, 'is_patched': jnp.ones(tuning.NUM, bool)}
    delta = jnp.full(X.shape[1:], 0.1)
    both = losses(tuning.NET, MODEL.batch_stats, 0.001)
    direct = jax.jit(jax.grad(both.outer, 1))(
      delta, MODEL.params, X, Y, batch['is_patched']
    )
    at = lambda rate: gradient(hparams(map_lr=rate), delta, batch, kept)
    chex.assert_trees_all_close(at(0.0), direct, rtol=1e-4, atol=1e-6)
    change = jax.tree.map(np.subtract, at(0.1), direct)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(change))
    self.assertGreater(largest, 1e-3)

  @parameterized.parameters(
    (256, 0.01, 2), (99, 0.01, 1), (100, 0.01, 1), (8, 0.5, 4), (4, 1.0, 4)
  )
  def test_number_of_patched_images(self, size, ratio, want):
    hp = hparams(patch_ratio=ratio)
    got = _patched(tuning.KEY, size, hp)
    self.assertEqual((got.shape, int(jnp.sum(got))), ((size,), want))

  def test_is_one_phase_on_the_clean_set_with_its_recipe(self):
    (phase,) = defenses.i_bau(tuning.NET).phases
    self.assertEqual((phase.reads, phase.augment), ('clean', True))
    self.assertEqual((phase.num_epochs, phase.batch_size), (10, 256))
    self.assertFalse(phase.drop_last)

  @parameterized.parameters(
    (dict(rounds=0), '`rounds=0` must be positive'),
    (dict(num_fixed_point=0), '`num_fixed_point=0` must be positive'),
    (dict(lr=-1e-4), '`lr=-0.0001` must not be negative'),
    (dict(penalty=-1.0), '`penalty=-1.0` must not be negative'),
    (dict(patch_ratio=1.5), 'ratios are fractions'),
    (dict(weight_decay=-1.0), '`weight_decay=-1.0` must not be negative'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.i_bau(tuning.NET, defenses.IBauHParams(**values))

  def test_floats_are_leaves_and_counts_are_not(self):
    self.assertLen(jax.tree.leaves(defenses.IBauHParams()), 6)


class IBauGoldenTest(parameterized.TestCase):
  """Two inner steps and a hypergradient on a real network, in float64."""

  arrays = golden.arrays('i_bau', 'net/')

  def close(self, value, want):
    golden.assert_close(value, want, 1e-8)

  def batches(self):
    return [
      {
        'image': golden.images('i_bau', f'net/images{i}_u8'),
        'label': jnp.asarray(self.arrays[f'labels{i}'], jnp.int32),
      }
      for i in (0, 1)
    ]

  def test_perturbation(self):
    arrays, hp = self.arrays, defenses.IBauHParams()
    classifier = golden.network()

    @golden.jit
    def step(model, delta, images):
      labels = jnp.argmax(classifier.apply(model, images)[0], -1)
      inner = losses(classifier, model.batch_stats, hp.penalty).inner
      value, grad = jax.value_and_grad(inner)(
        delta, model.params, images, labels
      )
      return delta - hp.inner_lr * grad, value

    with jax.enable_x64(True):
      model = golden.state(dtype=jnp.float64)
      delta = jnp.zeros((32, 32, 3), jnp.float64)
      for i, batch in enumerate(self.batches()):
        delta, value = step(model, delta, batch['image'])
        self.close(delta, arrays[f'delta_{i + 1}'])
        self.close(value, arrays[f'inner_loss_{i + 1}'])

  @pytest.mark.slow  # more than a minute of compilation
  def test_hypergradient(self):
    arrays, hp = self.arrays, defenses.IBauHParams()
    classifier = golden.network()
    rows = np.isin(np.arange(32), arrays['patched_rows'])
    run = golden.jit(lambda *args: unlearning_gradient(classifier, hp, *args))
    with jax.enable_x64(True):
      model = golden.state(dtype=jnp.float64)
      kept, batch = self.batches()
      delta = jnp.asarray(arrays['delta_2'], jnp.float64)
      batch['is_patched'] = jnp.asarray(rows)
      grad, info = run(model, delta, batch, kept)
    self.close(info['loss'], arrays['outer_loss'])
    got = torch_layout.to_torch(grad)
    for name, value in golden.arrays('i_bau', 'net/hypergrad/').items():
      self.close(got[name], value)
    lengths = [np.linalg.norm(got[n]) for n in arrays['param_names']]
    np.testing.assert_allclose(lengths, arrays['hypergrad_l2'], rtol=1e-8)
