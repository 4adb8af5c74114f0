import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import connectivity, eval, surgery, types
from tests import small_nets

LINEAR = small_nets.linear_net(size=4, classes=3)
CONV = small_nets.conv_net(size=8, classes=4)
IMAGES = small_nets.random_images(0, 12)
LABELS = np.arange(12) % 4
KEY = jax.random.key(0)


def conv_state(seed):
  state = CONV.init(jax.random.key(seed))
  shift = lambda x: x + 0.1 * seed
  return types.ModelState(
    params=state.params, batch_stats=jax.tree.map(shift, state.batch_stats)
  )


def logits_of(images):
  x = np.float32(images) / np.float32(255)
  return lambda classifier, state: classifier.apply(state, x)[0]


def counts(classifier, state):
  return eval.count(
    classifier,
    state,
    IMAGES,
    LABELS,
    stamp=lambda x, key, index: x.at[:, -2:, -2:].set(1.0),
    relabel=jnp.zeros_like,
    key=KEY,
    batch_size=5,
  )


class LinearTest(parameterized.TestCase):
  def test_default_positions(self):
    t = connectivity.positions()
    self.assertLen(t, 21)
    self.assertEqual((t[0], t[-1]), (0, 1))
    np.testing.assert_allclose(np.diff(t), 0.05, rtol=1e-5)

  def test_row11_linear_classifier_mixes_logits(self):
    a, b = (LINEAR.init(jax.random.key(i)) for i in (0, 1))
    images = small_nets.random_images(0, 5, size=4)
    path = connectivity.evaluate_path(LINEAR, a, b, logits_of(images))
    ends = [logits_of(images)(LINEAR, state) for state in (a, b)]
    for t, logits in zip(path['t'], path['naive'], strict=True):
      np.testing.assert_allclose(
        logits, (1 - t) * ends[0] + t * ends[1], atol=1e-5
      )

  @parameterized.parameters(1, 2, 8)
  def test_row11_counts_at_the_ends_equal_direct_evaluation(self, chunk):
    a, b = conv_state(1), conv_state(2)
    run = jax.jit(
      functools.partial(
        connectivity.evaluate_path,
        CONV,
        evaluate_fn=counts,
        t=np.array([0, 0.3, 1]),
        chunk=chunk,
      )
    )
    path = run(a, b)
    direct = jax.jit(lambda state: counts(CONV, state))
    for i, state in ((0, a), (2, b)):
      for name, value in direct(state).items():
        self.assertEqual(int(path['naive'][name][i]), int(value), name)
    self.assertEqual(path['naive']['clean_hits'].shape, (3,))

  def test_ends_are_exact(self):
    a, b = conv_state(1), conv_state(2)
    for t, end in ((0.0, a), (1.0, b)):
      jax.tree.map(
        np.testing.assert_array_equal, connectivity.point(a, b, t), end
      )

  def test_row11_recalibration_with_the_same_images_is_a_no_op(self):
    batches = (np.float32(IMAGES) / 255).reshape(2, 6, 8, 8, 3)
    state = surgery.reestimate_bn(CONV, conv_state(1), batches)
    result = connectivity.evaluate_at(
      CONV, state, state, 0.4, logits_of(IMAGES), batches=batches
    )
    np.testing.assert_allclose(
      result['recalibrated'], result['naive'], atol=1e-5
    )

  def test_recalibrated_ignores_the_statistics_of_the_ends(self):
    batches = jnp.asarray(np.float32(IMAGES) / 255)[None]
    a, b = conv_state(1), conv_state(2)
    other = types.ModelState(
      params=b.params,
      batch_stats=jax.tree.map(lambda x: 3 * x, b.batch_stats),
    )
    one, two = (
      connectivity.evaluate_at(
        CONV, a, end, 0.5, logits_of(IMAGES), batches=batches
      )
      for end in (b, other)
    )
    np.testing.assert_array_equal(one['recalibrated'], two['recalibrated'])
    self.assertGreater(float(np.abs(one['naive'] - two['naive']).max()), 0.01)

  def test_no_barrier_between_a_model_and_itself(self):
    state = conv_state(1)
    path = connectivity.evaluate_path(
      CONV, state, state, counts, t=connectivity.positions(5)
    )
    error = 1 - eval.rates(path['naive'])['c_acc']
    self.assertEqual(float(connectivity.barrier(path['t'], error)), 0)

  def test_closed_form_curve(self):
    # logits = ±4·(1 − 2t): the error jumps from 0 to 1 in the middle.
    one = lambda sign: types.ModelState(
      params={
        'head': {'w': jnp.zeros((48, 2)), 'b': 4 * sign * jnp.array([1, -1.0])}
      },
      batch_stats={},
    )
    classifier = small_nets.linear_net(size=4, classes=2)
    images = small_nets.random_images(0, 3, size=4)
    loss = lambda c, s: eval.count(
      c, s, images, np.zeros(3, int), with_loss=True, batch_size=2
    )
    path = connectivity.evaluate_path(classifier, one(1), one(-1), loss)
    t = np.asarray(path['t'])
    np.testing.assert_allclose(
      eval.rates(path['naive'])['clean_loss'],
      np.log1p(np.exp(-8 * (1 - 2 * t))),
      rtol=1e-4,
      atol=1e-6,
    )

  def test_errors_name_the_cure(self):
    a, narrow = conv_state(1), small_nets.conv_net(width=4).init(KEY)
    with self.assertRaisesRegex(ValueError, 'share architecture'):
      connectivity.point(a, narrow, 0.5)
    with self.assertRaisesRegex(ValueError, 'at least 2'):
      connectivity.positions(1)
    with self.assertRaisesRegex(ValueError, r'not in \[0, 1\]'):
      connectivity.evaluate_path(CONV, a, a, counts, t=np.array([0, 1.5]))
