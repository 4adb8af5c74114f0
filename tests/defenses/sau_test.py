"""SAU: its two losses by hand, its search, its guarantees, torch's numbers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import defenses, optim, training, tree, types
from bdjax.defenses.sau import search, search_loss, unlearning_loss
from tests import small_nets
from tests.defenses import tuning
from tests.reference import golden, torch_layout

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
LINEAR = small_nets.linear_net(8, 4)
CLOCK = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 1, 1)


def hparams(**values):
  base = dict(epochs=2, batch_size=NUM, lr=1e-2)
  return defenses.SauHParams(**base | values)


def images():
  return jnp.asarray(tuning.IMAGES, jnp.float32) / 255


def labels():
  return jnp.asarray(tuning.LABELS, jnp.int32)


@functools.cache
def model(seed=0):
  return NET.init(jax.random.key(seed))


@functools.cache
def linear_pair():
  """Linear models alike enough to share adversarial images."""
  student, other = (LINEAR.init(jax.random.key(seed)) for seed in (0, 1))
  return student, tree.add(student, tree.scale(0.02, other))


def found(hp, seeds=(0, 1), key=KEY):
  """Perturbations that two models share."""
  return searched(NET, [model(seed) for seed in seeds], hp, key)


def searched(net, pair, hp, key=KEY, rows=slice(None)):
  args = (*pair, images()[rows], labels()[rows], key)
  return np.asarray(jax.jit(lambda: search(net, *args, hp))())


def wide(**values):
  """A search that some of the images end in."""
  return hparams(eps=0.5, step_size=0.5, **values)


def guesses(state, deltas, rows=slice(None)):
  return jnp.argmax(LINEAR.apply(state, images()[rows] + deltas)[0], -1)


def shared_by(pair, deltas, rows=slice(None)):
  """Which images the linear models send to one wrong class."""
  clean = [guesses(state, 0.0, rows) for state in pair]
  now = [guesses(state, deltas, rows) for state in pair]
  shared = (now[0] == now[1]) & (now[0] != clean[0]) & (now[1] != clean[1])
  return np.asarray(shared)


def stopped_early(pair, hp, rows):
  """The search written out, which ends as soon as all images are shared.

  Returns:
    The perturbations and the number of steps.
  """
  x, y = images()[rows], labels()[rows]
  clean = [guesses(state, 0.0, rows) for state in pair]
  deltas = jnp.full(x.shape, hp.eps)

  @jax.jit
  def step(deltas):
    logits = lambda d: [LINEAR.apply(state, x + d)[0] for state in pair]
    loss = lambda d: search_loss(*logits(d), y, *clean, hp)
    moved = deltas - hp.step_size * jnp.sign(jax.grad(loss)(deltas))
    return jnp.clip(moved, -hp.eps, hp.eps)

  for k in range(hp.inner_steps):
    if np.all(shared_by(pair, deltas, rows)):
      return deltas, k
    deltas = step(deltas)
  return deltas, hp.inner_steps


def cross_entropy(row, label):
  return np.log(np.exp(row).sum()) - row[label]


def divergence(a, b):
  p, q = np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum()
  m = (p + q) / 2
  return 0.5 * np.sum(p * np.log(p / m) + q * np.log(q / m))


class SearchTest(parameterized.TestCase):
  def test_loss_by_hand(self):
    # Shared; only the student is fooled; none is; both, to different classes.
    student = np.asarray([[0.0, 2, 0], [0, 1, 0], [3, 0, 0], [0, 0, 2.0]])
    reference = np.asarray([[0.0, 1, 0], [2, 0, 1], [1, 0, 0], [0, 3, 0.0]])
    clean = jnp.zeros(4, jnp.int32)  # and the labels
    got = search_loss(
      jnp.float32(student),
      jnp.float32(reference),
      clean,
      clean,
      clean,
      hparams(beta_adv=0.3, beta_js=0.7),
    )
    adversarial = cross_entropy(student[2], 0)
    adversarial += sum(cross_entropy(reference[i], 0) for i in (1, 2))
    differ = sum(divergence(student[i], reference[i]) for i in (1, 2, 3))
    want = -0.3 * adversarial / 8 + 0.7 * differ / 4
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_equal_models_have_no_divergence_to_follow(self):
    only = hparams(beta_adv=0.0, inner_steps=1)
    np.testing.assert_array_equal(found(only, (0, 0)), np.float32(0.2))
    both = found(hparams(inner_steps=1), (0, 0))
    alone = found(hparams(inner_steps=1, beta_js=0.0), (0, 0))
    np.testing.assert_array_equal(both, alone)
    self.assertLess(both.min(), 0.1)

  def test_deltas_of_the_defaults_are_zero_or_the_radius(self):
    deltas = found(hparams())
    values = np.unique(np.round(deltas, 6))
    np.testing.assert_allclose(values, [-0.2, 0, 0.2], atol=1e-6)

  @parameterized.parameters('linf', 'l2', 'l1')
  def test_deltas_are_inside_their_balls(self, norm):
    deltas = found(hparams(norm=norm, eps=0.3, step_size=0.1))
    order = {'linf': np.inf, 'l2': 2, 'l1': 1}[norm]
    lengths = np.linalg.norm(deltas.reshape(NUM, -1), order, axis=1)
    self.assertLessEqual(lengths.max(), 0.3 * (1 + 1e-5))

  def test_no_norm_is_no_ball(self):
    deltas = found(hparams(norm='none', beta_js=0.0), (0, 0))
    self.assertGreater(np.abs(deltas).max(), 0.35)

  def test_fixed_steps_end_where_an_early_stop_would(self):
    pair, hp = linear_pair(), wide(inner_steps=6)
    (rows,) = np.nonzero(shared_by(pair, searched(LINEAR, pair, hp)))
    want, steps = stopped_early(pair, hp, rows)
    self.assertBetween(steps, 1, 5)
    got = searched(LINEAR, pair, hp, rows=rows)
    np.testing.assert_array_equal(got, want)

  def test_images_that_are_shared_stay(self):
    pair = linear_pair()
    first, second = (
      searched(LINEAR, pair, wide(inner_steps=k)) for k in (2, 3)
    )
    is_shared = shared_by(pair, first)
    self.assertTrue(is_shared.any())
    np.testing.assert_array_equal(second[is_shared], first[is_shared])
    self.assertTrue(np.any(second[~is_shared] != first[~is_shared]))

  @parameterized.parameters(('max', 0.2), ('min', -0.2), ('zero', 0.0))
  def test_starts(self, start, value):
    # Nothing moves without weights.
    deltas = found(hparams(start=start, beta_adv=0.0, beta_js=0.0))
    np.testing.assert_allclose(deltas, value, atol=1e-7)

  def test_random_start_takes_its_key(self):
    hp = hparams(start='random', beta_adv=0.0, beta_js=0.0)
    one, other = found(hp), found(hp, key=jax.random.key(1))
    self.assertFalse(np.array_equal(one, other))
    self.assertBetween(one.min(), 0, 0.05)
    np.testing.assert_allclose(one.max(), 0.2, rtol=1e-6)


class UnlearningLossTest(parameterized.TestCase):
  def test_loss_by_hand(self):
    # Suspicious; fooled where it was wrong before; right by accident.
    logits = np.asarray([[1.0, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    attacked = np.asarray([[0.0, 1, 1], [2, 0, 0], [0, 1, 0.0]])
    loss, metrics = unlearning_loss(
      jnp.float32(logits),
      jnp.float32(attacked),
      jnp.asarray([0, 1, 2]),
      jnp.asarray([0, 0, 1]),
      jnp.asarray([2, 0, 2]),
      hparams(lambda_clean=0.5, lambda_adv=0.25, lambda_shared=2.0),
    )
    p = np.exp(attacked[0]) / np.exp(attacked[0]).sum()
    shared = -np.log(1 - p[2]) / 3
    clean = np.mean([cross_entropy(logits[i], i) for i in range(3)])
    adversarial = np.mean([cross_entropy(attacked[i], i) for i in range(3)])
    np.testing.assert_allclose(metrics['shared_loss'], shared, rtol=1e-4)
    np.testing.assert_allclose(metrics['clean_loss'], clean, rtol=1e-5)
    np.testing.assert_allclose(metrics['suspicious'], 1 / 3, rtol=1e-6)
    want = 0.5 * clean + 0.25 * adversarial + 2 * shared
    np.testing.assert_allclose(loss, want, rtol=1e-4)

  def test_half_a_probability_is_log_two(self):
    attacked, other = jnp.zeros((2, 2)), jnp.asarray([1, 1])
    zero = jnp.zeros(2, jnp.int32)
    _, metrics = unlearning_loss(
      attacked, attacked, zero, zero, other, hparams()
    )
    np.testing.assert_allclose(metrics['shared_loss'], np.log(2), atol=1e-5)


class SauTest(parameterized.TestCase):
  def tune(self, hp, state=None, net=NET):
    return tuning.tune(defenses.sau(net, hp), state or model())

  def step(self, hp, net=NET):
    """The phase's state before and after a step on all images."""
    phase = defenses.sau(net, hp).phases[0]
    state = phase.init(KEY, types.Carry(model=model(), extra={}))
    batch = {'image': images(), 'label': labels()}
    return state, jax.jit(phase.step)(state, batch, CLOCK)

  def test_without_suspicious_images_the_step_is_one_on_clean_images(self):
    # A perturbation of nothing fools nobody.
    _, (after, metrics) = self.step(hparams(eps=0.0, step_size=0.0))
    self.assertEqual(float(metrics['suspicious']), 0)
    self.assertEqual(float(metrics['shared_loss']), 0)

    def loss_fn(params):
      here = types.ModelState(params=params, batch_stats=model().batch_stats)
      return training.cross_entropy(NET.apply(here, images())[0], labels())

    tx = optim.amsgrad(optim.constant(1e-2))
    params = model().params
    grads = jax.jit(jax.grad(loss_fn))(params)
    updates, _ = tx.update(grads, tx.init(params), params, clock=CLOCK)
    want = tree.add(params, updates)
    chex.assert_trees_all_close(after.trained, want, rtol=1e-3, atol=1e-4)

  def test_reference_stays_bit_identical(self):
    before, (after, _) = self.step(hparams())
    chex.assert_trees_all_equal(after.rest.reference, model())
    moved = jax.tree.map(
      lambda a, b: not np.array_equal(a, b), before.trained, after.trained
    )
    self.assertTrue(all(jax.tree.leaves(moved)))

  def test_statistics_are_frozen_unless_asked_for(self):
    frozen = self.tune(hparams())
    chex.assert_trees_all_equal(frozen.batch_stats, model().batch_stats)
    moved = self.tune(hparams(train_bn=True, lr=0.0, eps=0.0, epochs=3))
    chex.assert_trees_all_equal(moved.params, model().params)
    # Of two equal halves the statistics are those of one.
    mean, var = tuning.decayed(model(), steps=3)
    got = moved.batch_stats['bn0']
    np.testing.assert_allclose(got['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['var'], var, rtol=1e-4)

  @parameterized.parameters((True, 1.0), (False, 1.2))
  def test_clipped_images_stay_in_range(self, clip, top):
    seen = []

    def apply(state, x, **kwargs):
      seen.append(jnp.max(x))
      return NET.apply(state, x, **kwargs)

    hp = hparams(clip=clip, beta_adv=0.0, beta_js=0.0)
    (phase,) = defenses.sau(NET._replace(apply=apply), hp).phases
    state = phase.init(KEY, types.Carry(model=model(), extra={}))
    batch = {'image': jnp.ones_like(images()), 'label': labels()}

    def tops():
      seen.clear()
      phase.step(state, batch, CLOCK)
      return seen[-2]  # the reference's pass over [x; x + δ]

    np.testing.assert_allclose(jax.jit(tops)(), top, rtol=1e-6)

  def test_reads_the_clean_set_as_it_is(self):
    (phase,) = defenses.sau(NET).phases
    self.assertEqual((phase.reads, phase.augment), ('clean', False))
    self.assertEqual((phase.num_epochs, phase.batch_size), (100, 256))
    self.assertFalse(phase.drop_last)

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(inner_steps=0), '`inner_steps=0` must be positive'),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(eps=51.0), '51/255'),
    (dict(norm='linfty'), "Did you mean 'linf'"),
    (dict(start='maximum'), "Did you mean 'max'"),
    (dict(lambda_shared=-1.0), '`lambda_shared=-1.0` must not be negative'),
    (dict(b1=2.0), r'`b1=2.0` is not in \[0, 1\]'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.sau(NET, defenses.SauHParams(**values))


class SauGoldenTest(parameterized.TestCase):
  """One search of five steps and one step of the weights, in float64.

  The fixture holds perturbations in units of the radius.
  """

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def close(self, value, want, tolerance=1e-6):
    golden.assert_close(value, want, tolerance)

  @parameterized.parameters(1, 2, 3, 4, 5)
  def test_search_loss(self, k):
    arrays = {
      name: jnp.asarray(x)
      for name, x in golden.arrays('sau').items()
      if x.dtype.kind in 'fi'
    }

    def loss(adversarial, divergence):
      return search_loss(
        arrays[f'inner_per_logits_{k}'],
        arrays[f'inner_per_logits_ref_{k}'],
        arrays['labels'],
        arrays['outer_ori_lab'],
        arrays['outer_ori_lab_ref'],
        defenses.SauHParams(beta_adv=adversarial, beta_js=divergence),
      )

    self.close(loss(1.0, 0.0), arrays[f'inner_loss_adv_{k}'])
    self.close(loss(0.0, 1.0), arrays[f'inner_loss_cross_{k}'])
    self.close(loss(0.01, 1.0), arrays[f'inner_loss_ae_{k}'])

  @pytest.mark.slow
  def test_search_and_step_of_the_phase(self):
    arrays = golden.arrays('sau')
    student, reference = (
      golden.state(f'{name}_w8_state', jnp.float64)
      for name in ('student', 'preact')
    )
    phase = defenses.sau(golden.network(), defenses.SauHParams()).phases[0]
    batch = {
      'image': golden.images('sau'),
      'label': jnp.asarray(arrays['labels'], jnp.int32),
    }
    state = phase.init(KEY, types.Carry(model=student, extra={}))
    state = state._replace(rest=state.rest._replace(reference=reference))
    after, metrics = golden.jit(phase.step)(state, batch, CLOCK)
    self.close(metrics['clean_loss'], arrays['outer_loss_cl'])
    self.close(metrics['shared_loss'], arrays['outer_loss_shared'])
    self.close(metrics['loss'], arrays['outer_loss'])
    self.close(metrics['suspicious'], np.mean(arrays['outer_potential_poison']))
    moved = torch_layout.to_torch(tree.subtract(after.trained, student.params))
    names = [str(name) for name in arrays['param_names']]
    norms = [np.linalg.norm(moved[name]) for name in names]
    self.close(np.asarray(norms), arrays['delta_l2_after'], 1e-4)
    gradients = torch_layout.to_torch(after.opt_state[1].mu)
    norms = [10 * np.linalg.norm(gradients[name]) for name in names]
    self.close(np.asarray(norms), arrays['outer_grad_l2'])
