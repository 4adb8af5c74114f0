"""NAD: what is compared, one pass per step, what the student starts from."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import data, defenses, models, training, tree, types
from bdjax.defenses.nad import attended_layers
from tests.defenses import tuning

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
CLOCK = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 4, 4)
LAYERS = ('conv1', 'conv2')


def hparams(**values):
  base = dict(epochs=3, teacher_epochs=2, batch_size=NUM, lr=0.05)
  return defenses.NadHParams(**base | values)


def batch():
  return {
    'image': jnp.asarray(tuning.IMAGES, jnp.float32) / 255,
    'label': jnp.asarray(tuning.LABELS, jnp.int32),
  }


@functools.cache
def model(seed=0):
  return NET.init(jax.random.key(seed))


def distill(hp, student, teacher, net=NET):
  """One step of the second phase: the state and the metrics."""
  phase = defenses.nad(net, hp).phases[1]
  extra = training.Remembered(model=student, extra={})
  state = phase.init(KEY, types.Carry(model=teacher, extra=extra))
  return jax.jit(phase.step)(state, batch(), CLOCK)


def attention(features):
  energy = np.sum(np.asarray(features, np.float64) ** 2, -1)
  lengths = np.sqrt(np.sum(energy**2, (1, 2), keepdims=True))
  return energy / (lengths + 1e-6)


class NadTest(parameterized.TestCase):
  def test_distillation_by_hand(self):
    student, teacher = model(0), model(1)
    hp = hparams(beta2=3.0, beta3=7.0, layers=LAYERS)
    _, metrics = distill(hp, student, teacher)
    images = batch()['image']
    ours = NET.features(student, images, train=True)
    theirs = NET.features(teacher, images, train=False)
    want = sum(
      beta * np.mean((attention(ours[name]) - attention(theirs[name])) ** 2)
      for beta, name in ((3.0, 'conv1'), (7.0, 'conv2'))
    )
    np.testing.assert_allclose(metrics['distillation'], want, rtol=1e-4)
    loss = training.cross_entropy(ours['logits'], batch()['label']) + want
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-4)

  def test_a_teacher_like_the_student_costs_nothing(self):
    # Of a net without norms, whose passes are alike in both BN modes.
    plain = lambda state, images, train=False, **kwargs: NET.apply(
      state, images, train=False, **kwargs
    )
    net = NET._replace(apply=plain)
    _, metrics = distill(hparams(), model(), model(), net)
    self.assertEqual(float(metrics['distillation']), 0)
    _, metrics = distill(hparams(), model(), model(1), net)
    self.assertGreater(float(metrics['distillation']), 0)

  def test_without_weights_the_student_is_fine_tuned_plainly(self):
    state, _ = distill(
      hparams(beta1=0.0, beta2=0.0, beta3=0.0), model(), model(1)
    )
    optimizer = training.optimizer(hparams())
    phase = training.supervised(NET, optimizer, name='tune', num_epochs=4)
    plain = phase.init(KEY, types.Carry(model=model(), extra={}))
    plain, _ = jax.jit(phase.step)(plain, batch(), CLOCK)
    chex.assert_trees_all_close(state.trained, plain.trained, rtol=1e-5)
    chex.assert_trees_all_close(
      state.rest.batch_stats, plain.rest[0], rtol=1e-5
    )

  def test_weights_pull(self):
    weak, _ = distill(hparams(beta3=0.0), model(), model(1))
    strong, _ = distill(hparams(), model(), model(1))
    gap = tree.norm(tree.subtract(weak.trained, strong.trained))
    self.assertGreater(float(gap), 1e-4)

  def test_teacher_stays_bit_identical_as_it_teaches(self):
    state, _ = distill(hparams(), model(), model(1))
    chex.assert_trees_all_equal(state.rest.teacher, model(1))

  def test_running_statistics_move_once_per_step_from_the_old_model(self):
    hp = hparams(lr=0.0, epochs=3, teacher_epochs=5)
    after = tuning.tune(defenses.nad(NET, hp), model())
    chex.assert_trees_all_equal(after.params, model().params)
    mean, var = tuning.decayed(model(), steps=3)
    got = after.batch_stats['bn0']
    np.testing.assert_allclose(got['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['var'], var, rtol=1e-4)

  def test_one_pass_of_either_network_per_step(self):
    calls = []

    def apply(state, images, *, train=False, **kwargs):
      calls.append(train)
      return NET.apply(state, images, train=train, **kwargs)

    phase = defenses.nad(NET._replace(apply=apply), hparams()).phases[1]
    extra = training.Remembered(model=model(), extra={})
    state = phase.init(KEY, types.Carry(model=model(), extra=extra))
    jax.eval_shape(phase.step, state, batch(), CLOCK)
    self.assertCountEqual(calls, [True, False])

  def test_extra_is_handed_on(self):
    hp = hparams(epochs=1, teacher_epochs=1)
    extra = {'mask': jnp.ones(2)}
    carry, _ = tuning.run(defenses.nad(NET, hp), model(), extra)
    chex.assert_trees_all_equal(carry.extra, extra)

  def test_layers_of_the_architectures(self):
    spec = data.spec('cifar10')
    res = models.make('preactresnet18', spec, width=2)
    self.assertEqual(attended_layers(res), ('stage2', 'stage3', 'stage4'))
    pooled = ('stage3', 'penultimate')
    self.assertEqual(attended_layers(res, pooled), pooled)
    self.assertEqual(attended_layers(NET), LAYERS)

  def test_both_phases_read_the_clean_set_with_its_recipe(self):
    for phase in defenses.nad(NET).phases:
      self.assertEqual((phase.reads, phase.augment), ('clean', True))
      self.assertEqual((phase.num_epochs, phase.batch_size), (10, 256))
      self.assertFalse(phase.drop_last)

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(teacher_epochs=0), '`teacher_epochs=0` must be positive'),
    (dict(beta2=-1.0), '`beta2=-1.0` must not be negative'),
    (dict(layers=('conv3',)), "Did you mean 'conv"),
    (dict(layers=('conv1',) * 4), 'three at most'),
    (dict(schedule='cosine'), "Did you mean 'cosine_epoch'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.nad(NET, defenses.NadHParams(**values))
