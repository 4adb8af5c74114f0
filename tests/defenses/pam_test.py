"""PAM: the step towards the backdoor by hand, on a quadratic, by torch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax import checks, defenses, optim, training, tree, types
from tests import small_nets
from tests.defenses import inverting, tuning
from tests.reference import golden, torch_layout

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
CLOCK, batch, model = inverting.CLOCK, inverting.batch, inverting.model
FIRST, SECOND = 4, 7  # the phases that unlearn


def hparams(**values):
  return defenses.PamHParams(**inverting.ROUNDS | values)


@functools.cache
def run(num_phases=8):
  """The carry after so many phases, and the metrics of the last."""
  if num_phases == 0:
    return types.Carry(model=model(), extra={}), {}
  defense = defenses.pam(NET, hparams(lr=0.1))
  last = defense._replace(phases=defense.phases[num_phases - 1 : num_phases])
  before = run(num_phases - 1)[0]
  one = jax.jit(lambda carry: tuning.run(last, carry.model, carry.extra))
  return one(before)


def unlearning(i, net=NET, change=lambda x: x, **values):
  """A phase that unlearns.

  Args:
    i: which.
    net: the network.
    change: what stands in for the generator.
    **values: hyper-parameters.
  """
  return inverting.phases(defenses.pam, net, hparams(**values), change)[i]


def start(phase, state, attacked=None):
  """The phase's state; from a later round where attacked weights are given."""
  extra = {'generator': {}, 'mask': jnp.zeros(1), 'target': jnp.int32(0)}
  if attacked is not None:
    extra['attacked'] = attacked
  return phase.init(KEY, types.Carry(model=state, extra=extra))


def step(change=lambda x: x, **values):
  """One step from model 0 with model 1 as the attacked, before and after."""
  phase = unlearning(SECOND, change=change, **values)
  before = start(phase, model(), model(1).params)
  return before, *jax.jit(phase.step)(before, batch(), CLOCK)


def loss_at(params, images):
  """Cross-entropy of the batch in train-BN, and the new statistics."""
  state = types.ModelState(params=params, batch_stats=model().batch_stats)
  logits, new = NET.apply(state, images, train=True)
  return training.cross_entropy(logits, batch()['label']), new.batch_stats


def quadratic() -> types.Classifier:
  """Cross-entropy of label 0 is c + ½(θ − 1)², whatever the image."""

  def apply(state, images, *, train=False, edits=None):
    del train
    edits = edits or {}
    x = edits.get('penultimate_map', lambda x: x)(images)
    q = 0.3 + 0.5 * jnp.sum((state.params['w'] - 1) ** 2)
    logits = jnp.stack([-q, jnp.log(-jnp.expm1(-q))])
    return jnp.tile(logits[None], (len(x), 1)), state

  return NET._replace(apply=apply)


def descend(theta, steps, attacked=None, **values):
  """Where θ is after so many steps on the quadratic."""
  phase = unlearning(
    FIRST if attacked is None else SECOND, quadratic(), **values
  )
  data = {**batch(), 'label': jnp.zeros(NUM, jnp.int32)}
  state = start(
    phase,
    tuning.weights(theta),
    None if attacked is None else {'w': jnp.array([attacked])},
  )
  after = jax.jit(
    lambda s: jax.lax.fori_loop(
      0, steps, lambda _, s: phase.step(s, data, CLOCK)[0], s
    )
  )(state)
  return float(after.trained['w'][0])


class PamTest(parameterized.TestCase):
  def test_phases(self):
    made = defenses.pam(NET, hparams()).phases
    want = ['pretrain', 'mask1', 'attack1', 'target1', 'unlearn1']
    want += ['mask2', 'attack2', 'unlearn2']
    self.assertEqual([phase.name for phase in made], want)
    for phase in made:
      self.assertEqual((phase.reads, phase.batch_size), ('clean', NUM))
      self.assertTrue(phase.augment)
      self.assertFalse(phase.drop_last)
    self.assertEqual(made[FIRST].grad_passes, 1)

  def test_defaults_are_the_papers(self):
    phases = defenses.pam(small_nets.conv_net(size=32)).phases
    self.assertLen(phases, 2 + 3 * 3)
    lengths = {phase.name: phase.num_epochs for phase in phases[:5]}
    want = dict(pretrain=50, mask1=20, attack1=30, target1=1, unlearn1=30)
    self.assertEqual(lengths, want)
    hp = defenses.PamHParams()
    self.assertEqual((hp.lr, hp.momentum, hp.rho), (0.01, 0.1, 0.5))
    self.assertEqual((hp.share, hp.batch_size), (0.2, 128))

  def test_only_unlearning_changes_the_weights(self):
    chex.assert_trees_all_equal(run(4)[0].model, model())
    chex.assert_trees_all_equal(run(7)[0].model, run(5)[0].model)
    for old, new in ((4, 5), (7, 8)):
      pairs = zip(
        *(jax.tree.leaves(run(i)[0].model) for i in (old, new)), strict=True
      )
      self.assertFalse(any(np.array_equal(a, b) for a, b in pairs))

  @parameterized.parameters(0.0, 0.7)
  def test_row19_displacement_has_length_rho_and_leaves_statistics(self, rho):
    def apply(state, images, **options):
      logits, _ = NET.apply(state, images, **options)
      return logits, types.ModelState(params={}, batch_stats=state)

    phase = unlearning(SECOND, NET._replace(apply=apply), rho=rho)
    before = start(phase, model(), model(1).params)
    seen = jax.jit(phase.step)(before, batch(), CLOCK)[0].rest[0]
    e = tree.subtract(seen.params, model().params)
    np.testing.assert_allclose(tree.norm(e), rho, rtol=1e-5)
    chex.assert_trees_all_equal(seen.batch_stats, model().batch_stats)

  def test_row19_gradient_is_taken_at_the_displaced_weights(self):
    """No gradient passes e: it is that of the loss at fixed θ + e."""
    _, after, metrics = step(lr=0.3, rho=0.7)
    gap = tree.subtract(model(1).params, model().params)
    e = tree.scale(0.7 / tree.norm(gap), gap)
    moved = tree.add(model().params, e)
    value_and_grad = jax.jit(jax.value_and_grad(loss_at, has_aux=True))
    (loss, stats), grads = value_and_grad(moved, batch()['image'])
    self.assertAlmostEqual(float(metrics['loss']), float(loss), places=5)
    np.testing.assert_allclose(metrics['distance'], tree.norm(gap), rtol=1e-5)
    # The step is made at θ, though, and by plain SGD.
    want = tree.subtract(model().params, tree.scale(0.3, grads))
    chex.assert_trees_all_close(after.trained, want, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(after.rest[0], stats, rtol=1e-4, atol=1e-6)

  def test_statistics_are_of_the_mixed_batch(self):
    _, after, _ = step(lambda x: 1 - x, rho=0.0, share=1.0)
    want = loss_at(model().params, 1 - batch()['image'])[1]
    chex.assert_trees_all_close(after.rest[0], want, rtol=1e-4, atol=1e-6)

  def test_labels_stay_true_and_a_share_is_replaced(self):
    _, _, metrics = step(lambda x: 1 - x, rho=0.0, share=0.2)
    images, losses = np.asarray(batch()['image']), []
    loss = jax.jit(loss_at)
    for i in range(NUM):
      for j in range(i):  # ⌊0.2·6⌋ + 1 = 2 of 6 are replaced
        mixed = images.copy()
        mixed[[i, j]] = 1 - mixed[[i, j]]
        losses.append(float(loss(model().params, jnp.asarray(mixed))[0]))
    gaps = np.sort(np.abs(np.asarray(losses) - float(metrics['loss'])))
    self.assertLess(gaps[0], 1e-5)
    self.assertGreater(gaps[1], 1e-5)

  @pytest.mark.slow
  def test_attacked_weights_stay_for_all_rounds(self):
    for i in (5, 6, 7):
      attacked = run(i)[0].extra['attacked']
      chex.assert_trees_all_equal(attacked, model().params)
    (_, first), (_, second) = run(5), run(8)
    self.assertEqual(float(first['unlearn1']['distance'][0]), 0.0)
    gap = tree.norm(tree.subtract(run(7)[0].model.params, model().params))
    np.testing.assert_allclose(
      second['unlearn2']['distance'][0], gap, rtol=1e-5
    )

  def test_what_is_left(self):
    final = run()[0].extra
    self.assertEqual(set(final), {'generator', 'mask', 'target'})
    self.assertEqual(int(final['target']), int(run(4)[0].extra['target']))

  def test_optimizer_goes_on_in_the_next_round(self):
    carry = run(7)[0]
    kept = carry.extra['optimizers']['model']
    state = defenses.pam(NET, hparams()).phases[SECOND].init(KEY, carry)
    chex.assert_trees_all_equal(state.opt_state, kept)
    self.assertGreater(float(tree.norm(kept[1].trace)), 0.0)

  @parameterized.parameters((0.3, 1.3), (0.0, 1.0), (0.5, 1.5))
  def test_row18_quadratic_ends_rho_behind_the_minimum(self, rho, want):
    """θ_bd = 0 and the minimum at 1: the gradient is θ − ρ − 1."""
    got = descend(0.0, 200, rho=rho, lr=0.1)
    self.assertAlmostEqual(got, want, delta=1e-3)

  def test_row18_first_step_from_the_backdoor_is_plain_sgd(self):
    for rho in (0.0, 0.3, 5.0):
      self.assertAlmostEqual(descend(0.0, 1, rho=rho, lr=0.1), 0.1, places=6)

  def test_momentum_by_hand(self):
    """Gradients −1 at 0, then θ − 0.3 − 1 at 0.1: v = 0.1·(−1) − 1.2."""
    got = descend(0.0, 2, rho=0.3, lr=0.1, momentum=0.1)
    self.assertAlmostEqual(got, 0.1 + 0.1 * 1.3, delta=1e-6)

  def test_length_holds_next_to_the_backdoor_unless_capped(self):
    """From 0.1 the gradient is taken at −0.4, or at 0 where capped."""
    options = dict(attacked=0.0, rho=0.5, lr=0.1)
    free = descend(0.1, 1, **options)
    capped = descend(0.1, 1, cap_at_backdoor=True, **options)
    self.assertAlmostEqual(free, 0.1 + 0.1 * 1.4, delta=1e-6)
    self.assertAlmostEqual(capped, 0.1 + 0.1 * 1.0, delta=1e-6)

  def test_recalibration_fits_statistics_to_the_weights(self):
    hp = hparams(rounds=1, recalibrate=True)
    phases = defenses.pam(NET, hp).phases
    self.assertEqual(phases[-1].name, 'recalibrate')
    last = types.Defense(phases=phases[-1:])
    tuned = tuning.tune(last, model(1), augment=None)
    chex.assert_trees_all_equal(tuned.params, model(1).params)
    mean, _ = tuning.batch_statistics(model(1))
    np.testing.assert_allclose(
      tuned.batch_stats['bn0']['mean'], mean, rtol=1e-4, atol=1e-5
    )

  def test_a_network_without_the_map_is_unsupported(self):
    with self.assertRaisesRegex(checks.Unsupported, "no tap 'penultimate_map'"):
      defenses.pam(small_nets.linear_net())

  @parameterized.parameters(
    (dict(rounds=0), '`rounds=0` must be positive'),
    (dict(unlearn_epochs=0), '`unlearn_epochs=0` must be positive'),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(momentum=-0.1), '`momentum=-0.1` must not be negative'),
    (dict(rho=-0.1), '`rho=-0.1` must not be negative'),
    (dict(share=0.0), r'`share=0.0` is not in \(0, 1\]'),
    (dict(levels=4), '`levels=4` cannot halve 8×8'),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.pam(NET, hparams(**values))


@functools.cache
def golden_step():
  """A step of the published setting on the fixtures' network, compiled."""
  phase = unlearning(SECOND, golden.network(), levels=None)
  return phase, golden.jit(phase.step)


class PamGoldenTest(parameterized.TestCase):
  """Two steps on 32 images in place of the mixed batch, in float64.

  The fixture holds changes of the weights in float32, and learning rates are
  float32 here, which are off by 2e-8 and tell from the second step on.
  """

  def setUp(self):
    super().setUp()
    self.enter_context(jax.enable_x64(True))

  def run_steps(self, name):
    """States before, between and after two steps, and their metrics."""
    phase, program = golden_step()
    labels = jnp.asarray(golden.arrays('pam')['labels'], jnp.int32)
    batch = {
      'image': golden.images('pam'),
      'label': labels,
      'index': jnp.arange(len(labels)),
    }
    state = start(
      phase,
      golden.state(name, jnp.float64),
      golden.state(dtype=jnp.float64).params,
    )
    middle, first = program(state, batch, CLOCK)
    last, second = program(middle, batch, CLOCK)
    return (state, middle, last), (first, second)

  def norms(self, params):
    named = torch_layout.to_torch(params)
    names = golden.arrays('pam')['param_names']
    return np.array([np.linalg.norm(named[str(name)]) for name in names])

  def assert_step(self, want, k, states, metrics):
    """Loss, distance, length, gradient and weights of the kth step."""
    before, after, now = states[k - 1], states[k], metrics[k - 1]
    e = optim.displacement(before.trained, before.rest[1]['attacked'], 0.5)
    old, new = (state.opt_state[1].trace for state in (before, after))
    gradient = tree.subtract(new, tree.scale(0.1, old))
    for name, value in {
      'norm_bd_minus_theta': now['distance'],
      'displacement_norm': tree.norm(e),
      'loss_displaced': now['loss'],
      'grad_l2': self.norms(gradient),
      'param_l2_after': self.norms(after.trained),
    }.items():
      golden_value = want[f'{name}_{k}']
      scale = np.max(np.abs(golden_value)) or 1.0
      gap = np.max(np.abs(np.asarray(value) - golden_value))
      self.assertLess(gap / scale, 1e-10 if k == 1 else 1e-7, name)
    return e

  def assert_selected(self, got, prefix, tolerance):
    want = golden.arrays('pam', f'{prefix}/')
    self.assertNotEmpty(want)
    got = torch_layout.to_torch(got)
    for name, value in want.items():
      golden.assert_close(got[name], value, tolerance)

  @pytest.mark.slow
  def test_two_steps(self):
    want = golden.arrays('pam')
    states, metrics = self.run_steps('student_w8_state')
    e = self.assert_step(want, 1, states, metrics)
    golden.assert_close(self.norms(e), want['displacement_l2_1'], 1e-10)
    self.assert_step(want, 2, states, metrics)
    start, middle, _ = states
    self.assert_selected(middle.opt_state[1].trace, 'grad_1', 1e-10)
    delta = tree.subtract(middle.trained, start.trained)
    self.assert_selected(delta, 'delta_1', 1e-6)
    self.assert_selected(middle.rest[0], 'bn_after_1', 1e-10)

  def test_two_steps_from_the_backdoor(self):
    """The first displacement is 0, the second eight times the distance."""
    want = golden.arrays('pam', 'at_backdoor/')
    states, metrics = self.run_steps('preact_w8_state')
    self.assert_step(want, 1, states, metrics)
    self.assert_step(want, 2, states, metrics)
