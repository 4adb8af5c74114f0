"""FST and its baselines: what moves, what is kept, one step by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import defenses, surgery, tree, types
from tests import small_nets
from tests.defenses import tuning

NET, KEY, NUM = tuning.NET, tuning.KEY, tuning.NUM
LINEAR = small_nets.linear_net(8, 4)
CLOCK = types.Clock(KEY, jnp.int32(0), jnp.int32(0), 4, 4)


def hparams(**values):
  base = dict(epochs=3, batch_size=NUM, schedule='constant', lr=0.1)
  return defenses.FstHParams(**base | values)


def images():
  return jnp.asarray(tuning.IMAGES, jnp.float32) / 255


def batch():
  return {'image': images(), 'label': jnp.asarray(tuning.LABELS, jnp.int32)}


@functools.cache
def model():
  return NET.init(KEY)


def tune(**values):
  return tuning.tune(defenses.fst(NET, hparams(**values)), model())


def path(hp, net=NET, steps=4):
  """The phase's states from the start on, and the metrics of the steps."""
  (phase,) = defenses.fst(net, hp).phases
  states = [phase.init(KEY, types.Carry(model=net.init(KEY), extra={}))]
  metrics, step = [], jax.jit(phase.step)
  for _ in range(steps):
    state, seen = step(states[-1], batch(), CLOCK)
    states.append(state)
    metrics.append(seen)
  return states, metrics


class FstTest(parameterized.TestCase):
  def test_norm_is_kept_after_every_step(self):
    states, _ = path(hparams(lr=0.5))
    want = float(tree.norm(model().params['head']))
    first = float(tree.norm(states[0].trained['head']))
    self.assertNotAlmostEqual(first, want, places=1)
    for state in states[1:]:
      norm = tree.norm(surgery.head_kernel(state.trained['head']))
      np.testing.assert_allclose(norm, want, rtol=1e-5)

  def test_step_of_softmax_regression_by_hand(self):
    states, metrics = path(hparams(alpha=0.3, momentum=0.0), LINEAR, steps=1)
    old = np.asarray(LINEAR.init(KEY).params['head']['w'], np.float64)
    head = jax.tree.map(np.float64, states[0].trained['head'])
    x = np.asarray(images(), np.float64).reshape(NUM, -1)
    logits = x @ head['w'] + head['b']
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (p - np.eye(4)[tuning.LABELS]) / NUM
    w = head['w'] - 0.1 * (x.T @ error + 0.3 * old)
    w *= np.linalg.norm(old) / np.linalg.norm(w)
    b = head['b'] - 0.1 * error.sum(0)
    got = states[1].trained['head']
    np.testing.assert_allclose(got['w'], w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['b'], b, rtol=1e-4, atol=1e-6)
    true = p[np.arange(NUM), tuning.LABELS]
    loss = -np.log(true).mean() + 0.3 * np.sum(head['w'] * old)
    np.testing.assert_allclose(metrics[0]['loss'], loss, rtol=1e-4)
    cosine = np.sum(head['w'] * old) / (
      np.linalg.norm(head['w']) * np.linalg.norm(old)
    )
    np.testing.assert_allclose(metrics[0]['cosine'], cosine, atol=1e-5)

  def test_projection_leaves_the_momentum(self):
    free, _ = path(hparams(project=False), LINEAR, steps=1)
    kept, _ = path(hparams(), LINEAR, steps=1)
    chex.assert_trees_all_equal(free[1].opt_state, kept[1].opt_state)
    self.assertFalse(
      np.allclose(free[1].trained['head']['w'], kept[1].trained['head']['w'])
    )

  def test_without_weight_and_projection_it_is_ft_init(self):
    chex.assert_trees_all_equal(
      tune(alpha=0.0, project=False), tune(mode='ft_init')
    )

  def test_weight_turns_the_head_away(self):
    cosines = [
      float(path(hparams(alpha=alpha))[1][-1]['cosine'])
      for alpha in (0.0, 0.5, 5.0)
    ]
    self.assertGreater(cosines[0], cosines[1])
    self.assertGreater(cosines[1], cosines[2])
    self.assertLess(cosines[2], -0.5)

  def test_fe_tuning_leaves_the_fresh_head(self):
    one, three = (tune(mode='fe_tuning', epochs=n) for n in (1, 3))
    np.testing.assert_array_equal(one.params['head'], three.params['head'])
    self.assertFalse(np.array_equal(one.params['head'], model().params['head']))
    self.assertFalse(np.array_equal(one.params['stem'], three.params['stem']))
    decayed = tune(mode='fe_tuning', weight_decay=0.5)
    np.testing.assert_array_equal(decayed.params['head'], one.params['head'])

  def test_lp_leaves_everything_but_the_head(self):
    after = tune(mode='lp', weight_decay=0.5)
    _, before_body = surgery.split_head(NET, model().params)
    head, body = surgery.split_head(NET, after.params)
    chex.assert_trees_all_equal(body, before_body)
    self.assertFalse(np.array_equal(head, model().params['head']))

  def test_lp_starts_from_the_old_head(self):
    after = tune(mode='lp', lr=0.0)
    chex.assert_trees_all_equal(after.params, model().params)

  @parameterized.parameters('fst', 'ft_init', 'fe_tuning', 'lp')
  def test_running_statistics_move_once_per_step_in_all_modes(self, mode):
    after = tune(mode=mode, lr=0.0)
    mean, var = tuning.decayed(model(), steps=3)
    got = after.batch_stats['bn0']
    np.testing.assert_allclose(got['mean'], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got['var'], var, rtol=1e-4)

  def test_is_one_phase_on_the_clean_set_with_its_recipe(self):
    (phase,) = defenses.fst(NET).phases
    self.assertEqual((phase.reads, phase.augment), ('clean', True))
    self.assertEqual((phase.num_epochs, phase.batch_size), (10, 128))
    self.assertFalse(phase.drop_last)

  @parameterized.parameters(
    (dict(epochs=0), '`epochs=0` must be positive'),
    (dict(alpha=-0.1), '`alpha=-0.1` must not be negative'),
    (dict(mode='fe-tuning'), "Did you mean 'fe_tuning'"),
    (dict(lr=-0.1), '`lr=-0.1` must not be negative'),
    (dict(schedule='cosine'), "Did you mean 'cosine_epoch'"),
  )
  def test_bad_values(self, values, message):
    with self.assertRaisesRegex(ValueError, message):
      defenses.fst(NET, defenses.FstHParams(**values))
