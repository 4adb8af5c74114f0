"""Adversarial training: what is trained on, its ball, its plain limit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import keys, optim, training, types
from tests.eval import linear

KEY = jax.random.key(0)
SPEC = linear.spec(shape=(4, 4, 3), num_classes=3)
LENGTH = dict(name='train', num_epochs=1, batch_size=6, reads='train')
IMAGES = np.random.default_rng(0).random((6, 4, 4, 3), np.float32)
LABELS = np.arange(6) % 3


def batch():
  return {
    'image': jnp.asarray(IMAGES),
    'label': jnp.asarray(LABELS),
    'index': jnp.arange(6),
    'mask': jnp.ones(6, bool),
  }


def clock():
  step = jnp.int32(0)
  return types.Clock(keys.root(1), step, step, num_steps=1, num_epochs=1)


def step(classifier, phase, model):
  carry = types.Carry(model=model, extra={})
  state, metrics = phase.step(phase.init(KEY, carry), batch(), clock())
  return phase.finish(state).model, metrics


def phase_of(classifier, **kwargs):
  hp = training.AdversaryHParams(**kwargs)
  return training.adversarial(
    classifier, optim.sgd(optim.constant(0.1)), hp, **LENGTH
  )


class AdversarialTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.seen = []
    net = linear.classifier(SPEC)

    def apply(state, images, *, train=False, edits={}):  # noqa: B006
      if train:
        self.seen.append(images)
      return net.apply(state, images, train=train, edits=edits)

    self.net, self.spy = net, net._replace(apply=apply)
    self.model = net.init(KEY)

  def test_no_steps_is_plain_training(self):
    plain = training.supervised(
      self.net, optim.sgd(optim.constant(0.1)), **LENGTH
    )
    got = step(self.net, phase_of(self.net, num_steps=0), self.model)
    chex.assert_trees_all_equal(got, step(self.net, plain, self.model))

  def test_no_radius_is_plain_training(self):
    got = step(self.net, phase_of(self.net, eps=0.0, num_steps=2), self.model)
    plain = step(self.net, phase_of(self.net, num_steps=0), self.model)
    chex.assert_trees_all_close(got, plain, rtol=1e-5, atol=1e-6)

  def test_trains_on_harder_images_within_the_ball(self):
    with jax.disable_jit():
      phase = phase_of(self.spy, eps=0.1, step_size=0.05, num_steps=4)
      _, metrics = step(self.spy, phase, self.model)
    trained_on = np.asarray(self.seen[-1])
    gap = np.abs(trained_on - IMAGES)
    self.assertLessEqual(gap.max(), 0.1 + 1e-6)
    self.assertGreater(gap.mean(), 0.05)
    self.assertBetween(trained_on.min(), 0, 1)
    self.assertBetween(trained_on.max(), 0, 1)
    loss = lambda images: training.cross_entropy(
      self.net.apply(self.model, jnp.asarray(images))[0], jnp.asarray(LABELS)
    )
    self.assertGreater(float(loss(trained_on)), float(loss(IMAGES)))
    self.assertTrue(np.isfinite(metrics['loss']))

  def test_cost_is_told(self):
    self.assertEqual(phase_of(self.net).grad_passes, 11)

  def test_bad_values(self):
    with self.assertRaisesRegex(ValueError, 'write 8/255'):
      phase_of(self.net, eps=8.0)
    with self.assertRaisesRegex(ValueError, '`num_steps=-1`'):
      phase_of(self.net, num_steps=-1)
