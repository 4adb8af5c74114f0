import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

from bdjax import eval, perturb, training, types
from bdjax.reactivation import controls
from bdjax.reactivation.white_box import (
  WhiteBoxHParams,
  WhiteBoxState,
  reactivation_loss,
  white_box,
)
from tests import small_nets

KEY = jax.random.key(0)
FREE = dict(norm='l2', eps=1e3)  # a ball so large that nothing is projected


def gray_images(n, size=4, seed=0):
  """Float images far enough from 0 and 1 not to be clipped."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(0.3, 0.7, (n, size, size, 3)), jnp.float32)


def batch_of(images, labels, mask=None):
  n = len(images)
  return {
    'image': images,
    'label': jnp.asarray(labels),
    'index': jnp.arange(n),
    'mask': jnp.ones(n, bool) if mask is None else jnp.asarray(mask),
  }


def clock(step=0):
  step = jnp.asarray(step)
  return types.Clock(KEY, step, step, 10, 1)


def first_gradient(classifier, model, batch, **options):
  """What one unprojected step of size 1 subtracts from Δ = 0."""
  hp = WhiteBoxHParams(inner_steps=1, lr=1.0, **FREE, **options)
  phase = white_box(classifier, hp).phases[0]
  zero = jnp.zeros(classifier.info.image_shape)
  state, metrics = phase.step(WhiteBoxState(model, zero), batch, clock())
  return -state.delta, metrics


class WhiteBoxTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.net = small_nets.linear_net(size=4, classes=2)
    self.model = self.net.init(KEY)
    self.batch = batch_of(gray_images(5), [0, 0, 1, 0, 1])

  def closed_form(self, batch, weight_ce, weight_runner_up):
    """Gradient of the two-class linear softmax with respect to Δ."""
    w = np.float64(self.model.params['head']['w'])
    x = np.float64(batch['image']).reshape(len(batch['label']), -1)
    logits = x @ w
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    t = np.eye(2)[np.asarray(batch['label'])]
    r = 1 - t
    p_r = (p * r).sum(1, keepdims=True)
    rows = weight_ce * (p - t)
    rows = rows + weight_runner_up * p_r / (1.0001 - p_r) * (r - p)
    return (rows @ w.T).mean(0).reshape(4, 4, 3)

  @parameterized.parameters((1, 1), (1, 0), (0.5, 2))
  def test_row13_first_gradient_is_the_closed_form(self, ce, rival):
    gradient, _ = first_gradient(
      self.net,
      self.model,
      self.batch,
      weight_ce=float(ce),
      weight_runner_up=float(rival),
    )
    expected = self.closed_form(self.batch, ce, rival)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)

  def test_row13_loss_does_not_increase_for_small_steps(self):
    hp = WhiteBoxHParams(lr=0.01, eps=0.2, inner_steps=2)
    phase = white_box(self.net, hp).phases[0]
    state = phase.init(KEY, types.Carry(model=self.model, extra={}))
    losses = []
    for i in range(8):
      state, metrics = phase.step(state, self.batch, clock(i))
      losses.append(float(metrics['loss']))
    self.assertTrue(np.all(np.diff(losses) <= 0), losses)
    self.assertLess(losses[-1], losses[0])

  def test_row13_zero_radius_leaves_the_asr_exactly(self):
    attack = white_box(self.net, WhiteBoxHParams(eps=0.0, outer_epochs=2))
    images = small_nets.random_images(0, 9, size=4)
    feed = training.make_feed(images, np.zeros(9, int))
    carry, _ = training.run_phases(
      attack.phases,
      types.Carry(model=self.model, extra={}),
      {'pool': feed},
      KEY,
    )
    np.testing.assert_array_equal(carry.extra['delta'], 0)
    stamp = lambda x, key, index: jnp.roll(x, 1, axis=1)
    count = lambda stamp: eval.count(
      self.net,
      self.model,
      images,
      np.arange(9) % 2,
      stamp=stamp,
      relabel=jnp.zeros_like,
      key=KEY,
    )
    plain = count(stamp)
    perturbed = count(
      controls.perturbed_stamp(stamp, attack.trigger, carry.extra)
    )
    self.assertEqual(jax.device_get(plain), jax.device_get(perturbed))

  def test_row14_gradient_of_the_second_term(self):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(40, 6)), jnp.float32)
    target = rng.integers(0, 6, 40)
    loss = lambda z: jnp.sum(
      reactivation_loss(z, jnp.asarray(target), 0.0, 1.0)
    )
    gradient = jax.grad(loss)(logits)
    z = np.float64(logits)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    masked = np.where(np.eye(6, dtype=bool)[target], -np.inf, z)
    r = masked.argmax(1)
    p_r = p[np.arange(40), r][:, None]
    expected = p_r / (1.0001 - p_r) * (np.eye(6)[r] - p)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)

  def test_row14_runner_up_is_never_the_target(self):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(200, 3)), jnp.float32)
    target = jnp.asarray(rng.integers(0, 3, 200))
    rival = training.runner_up(logits, target)
    self.assertFalse(np.any(rival == target))
    top = jnp.argmax(logits, axis=-1)
    off_target = np.asarray(top != target)
    np.testing.assert_array_equal(rival[off_target], top[off_target])
    # Equal logits throughout: still another class than the target.
    flat = training.runner_up(jnp.zeros((3, 3)), jnp.arange(3))
    np.testing.assert_array_equal(flat, [1, 0, 0])

  def test_saturated_pixels_keep_their_gradient(self):
    black = batch_of(jnp.zeros((2, 4, 4, 3)), [0, 1])
    gradient, _ = first_gradient(self.net, self.model, black)
    np.testing.assert_allclose(
      gradient, self.closed_form(black, 1, 1), rtol=1e-4, atol=1e-6
    )

  def test_masked_images_do_not_count(self):
    mask = [True, True, True, False, False]
    masked = batch_of(self.batch['image'], self.batch['label'], mask)
    alone = batch_of(self.batch['image'][:3], self.batch['label'][:3])
    for one, two in zip(
      first_gradient(self.net, self.model, masked),
      first_gradient(self.net, self.model, alone),
      strict=True,
    ):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        one,
        two,
      )

  def test_inner_steps_are_single_steps(self):
    make = lambda n: white_box(
      self.net, WhiteBoxHParams(inner_steps=n, eps=0.1)
    ).phases[0]
    start = make(1).init(KEY, types.Carry(model=self.model, extra={}))
    state = start
    for i in range(3):
      state, metrics = make(1).step(state, self.batch, clock(i))
      if i == 0:
        before = metrics
    together, metrics = make(3).step(start, self.batch, clock())
    np.testing.assert_allclose(
      state.delta, together.delta, rtol=1e-5, atol=1e-7
    )
    self.assertEqual(float(metrics['loss']), float(before['loss']))

  def test_metrics_are_those_before_the_step(self):
    _, metrics = first_gradient(self.net, self.model, self.batch)
    logits, _ = self.net.apply(self.model, self.batch['image'])
    loss = reactivation_loss(logits, self.batch['label']).mean()
    hits = np.mean(np.argmax(logits, -1) == np.asarray(self.batch['label']))
    self.assertAlmostEqual(float(metrics['loss']), float(loss), delta=1e-5)
    self.assertAlmostEqual(float(metrics['asr']), hits, delta=1e-6)

  @parameterized.parameters(('linf', 0.05), ('l2', 0.3), ('l1', 1.0))
  def test_perturbation_is_inside_the_ball(self, norm, eps):
    hp = WhiteBoxHParams(norm=norm, eps=eps, lr=10.0)
    phase = white_box(self.net, hp).phases[0]
    carry = types.Carry(model=self.model, extra={})
    length = lambda delta: {
      'linf': np.abs(delta).max(),
      'l2': np.sqrt(np.sum(np.square(delta))),
      'l1': np.abs(delta).sum(),
    }[norm]
    state = phase.init(KEY, carry)
    self.assertLessEqual(length(np.float64(state.delta)), eps * (1 + 1e-5))
    state, _ = phase.step(state, self.batch, clock())
    outside = state._replace(delta=state.delta + 1.0)
    for delta in (state.delta, phase.finish(outside).extra['delta']):
      self.assertAlmostEqual(length(np.float64(delta)), eps, delta=eps * 1e-4)

  def test_model_is_returned_bit_identical(self):
    net = small_nets.conv_net(size=4, classes=2, width=4)
    model = net.init(KEY)
    phase = white_box(net, WhiteBoxHParams()).phases[0]
    state = phase.init(KEY, types.Carry(model=model, extra={}))
    state, _ = jax.jit(phase.step)(state, self.batch, clock())
    jax.tree.map(
      np.testing.assert_array_equal, phase.finish(state).model, model
    )

  def test_it_finds_what_a_linear_model_cannot_resist(self):
    attack = white_box(
      self.net, WhiteBoxHParams(eps=0.5, lr=0.5, outer_epochs=20)
    )
    images = small_nets.random_images(1, 16, size=4)
    shown = lambda delta: perturb.clip_unit(images / 255.0 + delta)
    predict = lambda x: np.argmax(self.net.apply(self.model, x)[0], axis=-1)
    rare = np.bincount(predict(shown(0.0)), minlength=2).argmin()
    feed = training.make_feed(images, np.full(16, rare))
    carry, metrics = training.run_phases(
      attack.phases,
      types.Carry(model=self.model, extra={}),
      {'pool': feed},
      KEY,
    )
    found = predict(shown(carry.extra['delta'][None]))
    np.testing.assert_array_equal(found, rare)
    self.assertLess(metrics['descend']['asr'][0], 0.6)

  def test_float_hparams_are_the_leaves(self):
    hp = WhiteBoxHParams(eps=0.1, lr=0.2, weight_ce=0.3, weight_runner_up=0.4)
    self.assertEqual(sorted(jax.tree.leaves(hp)), [0.1, 0.2, 0.3, 0.4])

  @parameterized.parameters(
    (dict(eps=12.75), '/255'),
    (dict(norm='linff'), "Did you mean 'linf'"),
    (dict(inner_steps=0), '`inner_steps=0` must be positive'),
    (dict(lr=-1.0), 'must not be negative'),
  )
  def test_errors_name_the_cure(self, change, message):
    hp = dataclasses.replace(WhiteBoxHParams(), **change)
    with self.assertRaisesRegex(ValueError, message):
      white_box(self.net, hp)
